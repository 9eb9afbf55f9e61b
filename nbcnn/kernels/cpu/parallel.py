"""How a kernel runs on all threads: each runs it whole, and `prange` hands each its share of the tasks.

    @njit(parallel=True)
    def relu_forward(y, x, count):
        for k in prange(count):             # of 10 tasks and 3 threads the first one takes 0, 1, 2, the next one 3, 4, 5
            y[k] = max(x[k], 0)

What stands outside of the loops is done by every thread. So it may compute numbers, but not write to arrays that others use; and
of two loops the second may not read what the first one wrote. Which thread takes a task may not change what it computes.

Memory for threads to work in is an array of THREADS * size, in which a thread's own part begins at share() * size. A kernel that
allocates says so, `njit(parallel=True, allocates=True)`, else Numba refuses to compile it.

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
THREADS = config.NUMBA_NUM_THREADS if PARALLEL else 1       # at most so many run a kernel
LINE = 8        # numbers for each thread in SHARES, a cache line: its share, and how many shares there are
SHARES = np.zeros(LINE * THREADS, np.int64)
SHARES[1::LINE] = 1
llvmlite.binding.add_symbol("nbcnn_shares", SHARES.ctypes.data)


def _share_of_this_thread(builder):
    """Pointers to the two numbers of the thread that runs this: its share, and how many there are."""
    module = builder.module
    thread = builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(INTP, []), "get_thread_id"), [])
    shares = module.globals.get("nbcnn_shares") or cgutils.add_global_variable(module, INTP, "nbcnn_shares")
    return [builder.gep(shares, [builder.add(builder.mul(thread, _constant(LINE)), _constant(k))]) for k in range(2)]


@intrinsic
def _first_and_end(typingctx, count):
    """The tasks of this thread, of `count`: the first one and the one behind the last."""
    require_threads()

    def codegen(context, builder, signature, args):
        zero, one = _constant(0), _constant(1)
        count = builder.select(builder.icmp_signed("<", args[0], zero), zero, args[0])
        if not PARALLEL:
            return context.make_tuple(builder, signature.return_type, (zero, count))
        share, shares = map(builder.load, _share_of_this_thread(builder))
        ends = [builder.udiv(builder.mul(count, k), shares) for k in (share, builder.add(share, one))]
        # So LLVM knows that no task is negative, and leaves out what Numba does for indices that are.
        ends = [builder.and_(end, _constant(2**62 - 1)) for end in ends]
        return context.make_tuple(builder, signature.return_type, ends)
    return types.UniTuple(types.intp, 2)(types.intp), codegen


@intrinsic
def share(typingctx):
    """The number of this thread's share, below THREADS: no other thread has it while the kernel runs."""
    require_threads()

    def codegen(context, builder, signature, args):
        return builder.load(_share_of_this_thread(builder)[0]) if PARALLEL else _constant(0)
    return types.intp(), codegen


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

    def codegen(context, builder, _, args):
        compiled, module = kernel.dispatcher.get_compile_result(signature), builder.module
        context.active_code_library.add_linking_library(compiled.library)
        held, threads = cgutils.alloca_once_value(builder, args[1]), args[2]

        # What Numba's threads call: with the number of a first share, in the place of a pointer, and how many to work on.
        loop_type = ir.FunctionType(ir.VoidType(), [POINTER.as_pointer(), INTP.as_pointer(), INTP.as_pointer(), POINTER])
        loop = ir.Function(module, loop_type, f"{compiled.fndesc.mangled_name}_shares")
        loop.linkage = "internal"
        inner = ir.IRBuilder(loop.append_basic_block())
        first, (count, shares), data = loop.args[0], (_load(inner, loop.args[1], k) for k in range(2)), loop.args[3]
        first, values = inner.ptrtoint(inner.load(first), INTP), inner.load(inner.bitcast(data, held.type))
        values = [inner.extract_value(values, k) for k in range(len(types_of))]
        mine = _share_of_this_thread(inner)
        with cgutils.for_range(inner, count, intp=INTP) as number:
            _store_all(inner, mine, (inner.add(first, number.index), shares))
            context.call_conv.call_function(inner, context.declare_function(module, compiled.fndesc), types.none, types_of, values)
        _store_all(inner, mine, (_constant(0), _constant(1)))
        inner.ret_void()

        # Numba starts its own loops with the same call. For each share it moves the pointer by a step, here of 1.
        start_type = ir.FunctionType(ir.VoidType(), [POINTER] * 5 + [INTP] * 3)
        start = cgutils.get_or_insert_function(module, start_type, "numba_parallel_for")
        firsts, steps = (cgutils.alloca_once_value(builder, value) for value in (ir.Constant(POINTER, None), _constant(1)))
        counts = cgutils.alloca_once(builder, INTP, 2)
        _store_all(builder, [builder.gep(counts, [_constant(k)]) for k in range(2)], (threads, threads))
        pointers = [builder.bitcast(pointer, POINTER) for pointer in (loop, firsts, counts, steps, held)]
        builder.call(start, [*pointers, _constant(1), _constant(1), threads])
        return context.get_dummy_value()
    return types.void(kernel, arguments, threads), codegen


def _constant(n):
    return ir.Constant(INTP, n)


def _load(builder, pointer, k):
    return builder.load(builder.gep(pointer, [_constant(k)]))


def _store_all(builder, pointers, values):
    for pointer, value in zip(pointers, values, strict=True):
        builder.store(value, pointer)


def on_threads(function, allocates=False, **options):
    """A function compiled with these options, and one with the same arguments that runs it on all threads.

    Unless the kernel `allocates`, no references to its arrays are counted: the function around it holds them. The counts lie in
    memory that all threads share, so that each would wait for the others in every task. Functions that such a kernel calls are
    compiled likewise: none of them may return an array.
    """
    kernel = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=allocates, **options)(function)
    names = ", ".join(inspect.signature(function).parameters)
    space = {"_kernel": kernel, "_run": _run_on_threads, "_threads": parallel._iget_num_threads}
    exec(f"def _start({names}):\n    _run(_kernel, ({names},), _threads())\n", space)
    return kernel, functools.wraps(function)(space["_start"])


def require_threads():
    """Start Numba's threads, unless they run: compiled kernels name them."""
    parallel._launch_threads()
