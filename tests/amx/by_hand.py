"""AMX where there is none: NBCNN_UNIT=amx PYTHONPATH=tests/amx python -m pytest tests/test_conv2d_bfloat16.py

Kernels are compiled as for a processor that has AMX. On another one its instructions are illegal: Linux sends SIGILL to the thread.
The handler here does what the instruction would have done, on registers in memory, and lets the thread go on behind it. This takes
microseconds for each, but the code is what a processor with AMX runs, with its registers, sizes, addresses and steps. What that
processor would refuse ends the process: tiles that are not configured, sizes that do not fit together, registers that there are
not. So does what no kernel here needs, though it is allowed: palette 0, rows to begin with.

The instructions are as Intel's Software Developer's Manual, volume 2, has them under their names.
"""
import ctypes
import os
import signal

import llvmlite.binding

FEATURES = ",".join(f"+{name}" for name, has in sorted(llvmlite.binding.get_host_cpu_features().items()) if has)
os.environ.setdefault("NUMBA_CPU_NAME", llvmlite.binding.get_host_cpu_name())
os.environ.setdefault("NUMBA_CPU_FEATURES", f"{FEATURES},+amx-tile,+amx-bf16")
os.environ.setdefault("PYTEST_ADDOPTS", "-p no:faulthandler")       # which has a handler of its own

ARCH_PRCTL = 158


class CDLL(ctypes.CDLL):
    """The operating system gives this process the tiles."""

    def __init__(self, name, *arguments, **options):
        super().__init__(name, *arguments, **options)
        if name is None:
            system = self.syscall
            self.syscall = lambda number, *rest: 0 if number == ARCH_PRCTL else system(number, *rest)


LIBC = ctypes.CDLL(None)
ctypes.CDLL = CDLL

import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

THREADS = 4096                      # places for the registers of threads, which take one by their number
TILES, ROWS, BYTES = 8, 16, 64      # registers, rows in each, bytes in a row
OWNER, SIZES = 16, 24               # in front of them lie the rows of each, the bytes in its rows, and the thread's number
STATE = np.zeros((THREADS, SIZES + TILES * ROWS * BYTES), np.uint8)
START, STEP = STATE.ctypes.data, STATE.shape[1]

# Where Linux puts the general registers, in the order of their numbers, and the instruction's address, 8 bytes each.
REGISTERS, ADDRESS, CONTEXT = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7), 16, 40
NO_PREFIX, F3, F2 = 0, 2, 3         # what stands in a VEX prefix for another one

thread_number, end_process = LIBC.gettid, LIBC.abort
for function in (thread_number, end_process):
    function.argtypes, function.restype = (), ctypes.c_int


@intrinsic
def memory(typingctx, address, kind):
    """A pointer to numbers of this kind."""
    return types.CPointer(kind.dtype)(address, kind), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(signature.return_type))


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a*b + c, rounded once."""
    return types.float32(*[types.float32] * 3), lambda context, builder, signature, args: builder.fma(*args)


@numba.njit
def require(holds):
    """What a processor would refuse to do."""
    if not holds:
        end_process()


@numba.njit
def flush(v):
    """Denormal numbers count as 0."""
    return np.float32(0) if abs(v) < np.float32(2.0**-126) else v


@numba.njit
def clear(at, size):
    for k in range(size):
        memory(at, types.uint8)[k] = 0


@numba.njit
def copy(to, to_step, source, step, rows, size):
    """Rows of so many bytes."""
    for row in range(rows):
        for k in range(size):
            memory(to + row * to_step, types.uint8)[k] = memory(source + row * step, types.uint8)[k]


@numba.njit
def configure(thread, at):
    """LDTILECFG: palette 1, and the sizes of the registers, which are 0 then."""
    source, sizes = memory(at, types.uint8), memory(thread, types.uint8)
    require(source[0] == 1)
    for k in range(1, BYTES):
        place = k - 16 if k < 32 else k - 48        # bytes of a row, 2 for each register; rows
        if 0 <= place < (2 * TILES if k < 32 else TILES):
            if k >= 48:
                require(source[k] <= ROWS)
                sizes[place] = source[k]
            elif place % 2 == 0:
                require(source[k] <= BYTES)
                sizes[TILES + place // 2] = source[k]
            else:
                require(source[k] == 0)
        else:
            require(source[k] == 0)
    for k in range(TILES):
        require((sizes[k] == 0) == (sizes[TILES + k] == 0))
    clear(thread + SIZES, TILES * ROWS * BYTES)


@numba.njit
def product(thread, c, a, b):
    """TDPBF16PS: c[m, n] += a[m, 2k] * b[k, 2n], summed up over k, plus a[m, 2k + 1] * b[k, 2n + 1], likewise."""
    sizes = memory(thread, types.uint8)
    require(a != b and b != c and a != c)
    require(sizes[a] == sizes[c] and 4 * sizes[b] == sizes[TILES + a] and sizes[TILES + b] == sizes[TILES + c])
    require(sizes[TILES + c] % 4 == 0 and sizes[c] > 0)
    tile = thread + SIZES
    for m in range(sizes[c]):
        for n in range(sizes[TILES + c] // 4):
            first = second = np.float32(0)
            for k in range(sizes[b]):
                x, w = (tile + (a * ROWS + m) * BYTES + 4 * k), (tile + (b * ROWS + k) * BYTES + 4 * n)
                first = flush(multiply_add(number(x), number(w), first))
                second = flush(multiply_add(number(x + 2), number(w + 2), second))
            total = memory(tile + (c * ROWS + m) * BYTES, types.float32)
            total[n] = flush(flush(total[n]) + flush(first + second))


@numba.njit
def number(at):
    """A number of bfloat16."""
    return flush(np.uint32(np.uint32(memory(at, types.uint16)[0]) << np.uint32(16)).view(np.float32))


@numba.cfunc(types.void(types.intc, types.intp, types.intp))
def run_instruction(_, info, context):
    """The handler: runs the instruction that the thread stopped at, and lets it go on behind."""
    me = thread_number()
    thread = START + me % THREADS * STEP
    owner = memory(thread + OWNER, types.intp)
    require(owner[0] == me or owner[0] == 0)        # until it releases them
    owner[0] = me
    registers = memory(context + CONTEXT, types.intp)
    at = registers[ADDRESS]
    code = memory(at, types.uint8)
    require(code[0] == 0xc4 and code[1] & 0x1f == 2 and code[2] & 0x84 == 0)       # VEX, of the third table, W = 0, 128 bits
    prefix, operation, mode, third = code[2] & 3, code[3], code[4], ~code[2] >> 3 & 15
    # The bits above three of each field are stored inverted.
    above_register, above_index, above_base = ~code[1] >> 4 & 8, ~code[1] >> 3 & 8, ~code[1] >> 2 & 8
    field, kind, base = mode >> 3 & 7, mode >> 6, mode & 7
    # What an instruction has no use for must be 0.
    require(above_register == 0 and (third == 0 or operation == 0x5c) and (field == 0 or operation != 0x49 or prefix == F2))
    size, place, stride, has_steps = 5, 0, 0, kind != 3 and base == 4
    if kind != 3:
        index = 4
        if base == 4:
            scale, index, base, size = code[5] >> 6, (code[5] >> 3 & 7) + above_index, code[5] & 7, 6
            stride = registers[REGISTERS[index]] << scale if index != 4 else 0
        require(not (kind == 0 and base == 5))          # an address of its own, which compilers do not make here
        place = registers[REGISTERS[base + above_base]]
        if kind == 1:
            place, size = place + types.int8(code[size]), size + 1
        elif kind == 2:
            place, size = place + memory(at + size, types.int32)[0], size + 4
    sizes, tile = memory(thread, types.uint8), thread + SIZES + field * ROWS * BYTES
    if operation == 0x49 and prefix == NO_PREFIX and kind != 3:
        configure(thread, place + stride)
    elif operation == 0x49 and prefix == NO_PREFIX and mode == 0xc0:                # TILERELEASE
        clear(thread, STEP)
    elif operation == 0x49 and prefix == F2 and kind == 3:                          # TILEZERO
        require(sizes[field] > 0 and base == 0)
        clear(tile, ROWS * BYTES)
    elif operation == 0x4b and prefix == F2 and has_steps:                          # TILELOADD
        require(sizes[field] > 0)
        clear(tile, ROWS * BYTES)
        copy(tile, BYTES, place, stride, sizes[field], sizes[TILES + field])
    elif operation == 0x4b and prefix == F3 and has_steps:                          # TILESTORED
        require(sizes[field] > 0)
        copy(place, stride, tile, BYTES, sizes[field], sizes[TILES + field])
    elif operation == 0x5c and prefix == F3 and kind == 3:                          # TDPBF16PS
        require(above_base == 0 and third < TILES)
        product(thread, field, base, third)
    else:
        require(False)
    registers[ADDRESS] = at + size


class Action(ctypes.Structure):
    """What `sigaction` takes."""
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ubyte * 128), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]


WITH_CONTEXT = 4        # SA_SIGINFO
action = Action(handler=run_instruction.address, flags=WITH_CONTEXT)
if LIBC.sigaction(signal.SIGILL, ctypes.byref(action), None):
    raise OSError("sigaction")
