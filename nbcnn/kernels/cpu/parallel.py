"""How a kernel runs on all threads: each runs it whole, and `prange` hands each its share of the tasks.

    @njit(parallel=PARALLEL)
    def relu_forward(y, x, count):
        for k in prange(count):             # of 10 tasks and 3 threads the first one takes 0, 1, 2, the next one 3, 4, 5
            y[k] = max(x[k], 0)

What stands outside of the loops is done by every thread. So it may compute numbers, but not write to arrays; and of two loops the
second may not read what the first one wrote. Which thread takes a task may not change what it computes.

Numba's own parallel loops are rewritten in many passes, which take two thirds of a kernel's compile time. Here the kernel is
compiled as any other function, and a function around it hands it to Numba's threads.
"""
import functools
import inspect

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc import parallel

# An IndexError cannot leave a thread, so a run with NUMBA_BOUNDSCHECK=1 compiles the kernels to run on one.
PARALLEL = not config.BOUNDSCHECK

INTP, POINTER = ir.IntType(64), ir.IntType(8).as_pointer()
LINE = 8        # numbers for each thread in SHARES, a cache line: its share, and how many shares there are
SHARES = np.zeros(LINE * config.NUMBA_NUM_THREADS, np.int64)
SHARES[1::LINE] = 1
llvmlite.binding.add_symbol("nbcnn_shares", SHARES.ctypes.data)


def _my_share(builder):
    """Where in SHARES the numbers of the thread lie that runs this."""
    thread = builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "get_thread_id"), [])
    shares = cgutils.add_global_variable(builder.module, INTP, "nbcnn_shares") \
        if "nbcnn_shares" not in builder.module.globals else builder.module.globals["nbcnn_shares"]
    return builder.gep(shares, [builder.mul(builder.zext(thread, INTP), ir.Constant(INTP, LINE))])


@intrinsic
def _first_and_end(typingctx, count):
    """The tasks of this thread, of `count`: the first one and the one behind the last."""
    def codegen(context, builder, signature, args):
        zero, count = ir.Constant(INTP, 0), args[0]
        count = builder.select(builder.icmp_signed("<", count, zero), zero, count)
        if not PARALLEL:
            return context.make_tuple(builder, signature.return_type, (zero, count))
        mine = _my_share(builder)
        share, shares = builder.load(mine), builder.load(builder.gep(mine, [ir.Constant(INTP, 1)]))
        # Without a sign: so LLVM knows that no task is negative, and that indices need not be tested for it.
        first, end = (builder.udiv(builder.mul(count, k), shares) for k in (share, builder.add(share, ir.Constant(INTP, 1))))
        first, end = (builder.and_(k, ir.Constant(INTP, 2**62 - 1)) for k in (first, end))
        return context.make_tuple(builder, signature.return_type, (first, end))
    return types.UniTuple(types.intp, 2)(types.intp), codegen


@numba.njit(inline="always")
def prange(count):
    """The tasks of this thread, of `count`."""
    first, end = _first_and_end(count)
    return range(first, end)


@intrinsic
def _run_on_threads(typingctx, kernel, arguments, threads):
    """Call kernel(*arguments) on so many threads, each with its share in SHARES."""
    types_of = tuple(arguments)
    signature = kernel.get_call_type(typingctx, types_of, {})

    def codegen(context, builder, signature_, args):
        compiled = kernel.dispatcher.get_compile_result(signature)
        context.active_code_library.add_linking_library(compiled.library)
        module, zero = builder.module, ir.Constant(INTP, 0)
        held = cgutils.alloca_once_value(builder, args[1])

        # What Numba's threads call, with the first share in the place of a pointer, and how many there are.
        name = f"{compiled.fndesc.mangled_name}_share"
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [
            POINTER.as_pointer(), INTP.as_pointer(), INTP.as_pointer(), POINTER]), name)
        function.linkage = "internal"
        inner = ir.IRBuilder(function.append_basic_block())
        firsts, counts, _, data = function.args
        values = inner.load(inner.bitcast(data, held.type))
        values = [inner.extract_value(values, k) for k in range(len(types_of))]
        first, mine = inner.ptrtoint(inner.load(firsts), INTP), _my_share(inner)
        with cgutils.for_range(inner, inner.load(counts), intp=INTP) as loop:
            inner.store(inner.add(first, loop.index), mine)
            inner.store(inner.load(inner.gep(counts, [ir.Constant(INTP, 1)])), inner.gep(mine, [ir.Constant(INTP, 1)]))
            callee = context.declare_function(module, compiled.fndesc)
            context.call_conv.call_function(inner, callee, types.none, types_of, values)
        inner.store(zero, mine)
        inner.store(ir.Constant(INTP, 1), inner.gep(mine, [ir.Constant(INTP, 1)]))
        inner.ret_void()

        # Numba's own loops are started by the same call. It moves the pointer by a step of 1 for each share.
        start = cgutils.get_or_insert_function(
            module, ir.FunctionType(ir.VoidType(), [POINTER] * 5 + [INTP] * 3), "numba_parallel_for")
        pointers = cgutils.alloca_once_value(builder, ir.Constant(POINTER, None))
        counts = cgutils.alloca_once(builder, INTP, 2)
        for k in range(2):
            builder.store(args[2], builder.gep(counts, [ir.Constant(INTP, k)]))
        steps = cgutils.alloca_once_value(builder, ir.Constant(INTP, 1))
        builder.call(start, [builder.bitcast(value, POINTER) for value in (function, pointers, counts, steps, held)]
                     + [ir.Constant(INTP, 1), ir.Constant(INTP, 1), args[2]])
        return context.get_dummy_value()
    return types.void(kernel, arguments, threads), codegen


def on_threads(function, **options):
    """A function compiled with these options, and one with the same arguments that runs it on all threads."""
    kernel = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function)
    names = ", ".join(inspect.signature(function).parameters)
    space = {"_kernel": kernel, "_run": _run_on_threads, "_threads": parallel._iget_num_threads}
    exec(f"def _start({names}):\n    _run(_kernel, ({names},), _threads())\n", space)
    return kernel, functools.wraps(function)(space["_start"])


def require_threads():
    """Start Numba's threads, unless they run: compiled kernels name them."""
    parallel._launch_threads()
