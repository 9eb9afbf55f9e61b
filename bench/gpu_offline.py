"""What the GPU kernels of a training step compile to, and the floors that follow from that: on a machine without a GPU.

    python bench/gpu_offline.py [--model cifar10_quick] [--batch 64 1024] [--arch sm_90]

Nothing is run. The step is planned on device arrays that have no memory, every kernel of it is compiled for the types of its
arguments, assembled by ptxas, and taken apart again by nvdisasm; numba-cuda, ptxas and nvdisasm have to be installed, a driver not.
Ends with a line for each problem found and exit status 1, if there is one.
"""
import functools
import importlib.util
import inspect
import itertools
import math
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from numba import cuda
from numba.cuda.cudadrv import devicearray, devices, driver

import nbcnn
from nbcnn.datasets import Dataset, Loader
from nbcnn.kernels.cuda import buffer, compat, launch, state
from nbcnn.kernels.operation import Call
from nbcnn.steps import GRAPH_STEPS, DeviceSteps

from common import MODELS, Parser, table, whole

# One H200, as measured: float32 multiplications and additions, memory. What the clock was then, and what there is of each.
FLOP_PER_SECOND, BYTES_PER_SECOND = 67e12, 4.3e12
CLOCK, MULTIPROCESSORS, SCHEDULERS = 1.755e9, 132, 4

# Of a multiprocessor: its registers, its threads and the blocks it may hold are the same for both.
ARCHITECTURES = {"sm_80": ((8, 0), 164 * 1024), "sm_90": ((9, 0), 228 * 1024)}
REGISTERS, MOST_THREADS, MOST_BLOCKS = 65536, 2048, 32
SHARED = 48 * 1024              # bytes that a block may declare

CORRELATIONS = "conv2d_forward", "conv2d_backward_input", "conv2d_maxpool2d_forward"       # made of one kernel text


# ---- a GPU that is not there

class PretendedArray(devicearray.DeviceNDArray):
    """A device array without memory: views and types are numba-cuda's, what is read is zeros, what is written is lost.

    Attributes
    ----------
    host : NumPy array or None
        What it was a copy of.
    """
    host = None

    def copy_to_device(self, ary, stream=0):
        pass

    def copy_to_host(self, ary=None, stream=0):
        return np.zeros(self.shape, self.dtype)

    def __getitem__(self, item):
        return self._do_getitem(item)

    def __setitem__(self, item, value):
        pass


_addresses = itertools.count(2 ** 40, 2 ** 36)      # no two arrays overlap


def device_array(shape, dtype):
    """Instead of numba-cuda's."""
    shape, size = tuple(np.atleast_1d(shape).tolist()), np.dtype(dtype).itemsize
    strides = tuple(size * math.prod(shape[k + 1:]) for k in range(len(shape)))
    memory = driver.MemoryPointer(None, driver.binding.CUdeviceptr(next(_addresses)), size * math.prod(shape))
    return PretendedArray(shape, strides, dtype, gpu_data=memory)


def to_device(array):
    """Instead of numba-cuda's."""
    copy = device_array(array.shape, array.dtype)
    copy.host = array
    return copy


@contextmanager
def pretended_gpu():
    """Make `model.to("cuda")` and device arrays possible without a GPU. Gives the list of what would have been launched."""
    launched, kept = [], (buffer.nothing, state.no_training)
    with ExitStack() as stack:
        for owner, name, value in (
                (cuda, "device_array", device_array), (cuda, "to_device", to_device), (cuda, "as_cuda_array", lambda array: array),
                (devices, "get_context", lambda *_: None), (launch, "unavailable", lambda: ""),
                (compat.Launch, "__call__", lambda self, *arguments, stream=0: launched.append(Call(self, arguments)))):
            stack.enter_context(patch.object(owner, name, value))
        for function in kept:       # arrays that are made once: neither a GPU's in here, nor these ones out there
            function.cache_clear()
            stack.callback(function.cache_clear)
        yield launched


def training_calls(model, n, loss=None, *, fuse=True, **augmentation):
    """(step's name, Call) of a steady training step of n pictures with momentum: what a graph records.

    Parameters
    ----------
    model : Sequential
        With an input_shape; in a `pretended_gpu` it is moved there.
    n : int
    loss : loss of `nbcnn.losses`, optional
    fuse : bool
    augmentation
        As of `nbcnn.datasets.Loader`.
    """
    scheduler = nbcnn.BackpropScheduler(model.to("cuda"), loss or nbcnn.CrossEntropyLoss(), fuse=fuse)
    optimizer = nbcnn.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    classes = math.prod(list(model.shapes(model.input_shape).values())[-1])
    pictures = Dataset(np.zeros((n, *model.input_shape), np.uint8), np.zeros(n, np.int64), list(map(str, range(classes))), "none")
    scheduler.plan(model.input_shape)
    steps = DeviceSteps(scheduler, optimizer, Loader(pictures, n, dtype=model.dtype, **augmentation))
    scheduler.reserve(n, backward=True)
    optimizer.updated()
    return steps.calls(n)


# ---- compilation

def tool(name):
    """The path of a program of CUDA, on the path or in NVIDIA's wheels, or None."""
    if found := shutil.which(name):
        return found
    package = importlib.util.find_spec("nvidia")
    places = package.submodule_search_locations if package else []
    return next((str(path) for place in places for path in Path(place).glob(f"*/bin/{name}")), None)


def missing():
    """What has to be installed still, in words; "" where nothing has."""
    return ", ".join(f"{name} is not installed, of CUDA's toolkit or the wheel nvidia-cuda-{wheel}"
                     for name, wheel in (("ptxas", "nvcc"), ("nvdisasm", "nvdisasm")) if not tool(name))


def name_of(call):
    """The name of a call's kernel."""
    return call.kernel.kernel.py_func.__name__


def types_of(call):
    """The types of a call's arguments, as Numba sees them at a launch."""
    return tuple(map(call.kernel.kernel.typeof_pyval, call.arguments))


def threads_of(call):
    return math.prod(np.atleast_1d(call.kernel.block).tolist())


def blocks_of(call):
    return math.prod(np.atleast_1d(call.kernel.grid).tolist())


class Compiled:
    """A kernel compiled for the types of its arguments and one architecture, and disassembled where that is asked for.

    ptxas and nvdisasm run beside what comes next; what they found is waited for.
    """

    pool = ThreadPoolExecutor(2)

    def __init__(self, dispatcher, types, arch, disassemble):
        self.name, self.types, self.arch, self.disassembled = dispatcher.py_func.__name__, types, arch, disassemble
        self.float32 = not any(str(getattr(kind, "dtype", kind)) == "float64" for kind in types)
        options = {name: value for name, value in dispatcher.targetoptions.items() if name in ("fastmath", "launch_bounds", "opt")}
        cc = ARCHITECTURES[arch][0]
        # Device functions ask for the GPU's architecture.
        with patch("numba.cuda.dispatcher.get_current_device", lambda: SimpleNamespace(compute_capability=cc)):
            self.ptx, _ = cuda.compile_ptx(dispatcher.py_func, types, cc=cc, **options)
        self._assembled = self.pool.submit(self._assemble)

    def _assemble(self):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            source.write_text(self.ptx)
            done = subprocess.run([tool("ptxas"), "-v", f"-arch={self.arch}", source, "-o", target], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"ptxas refuses {self.name}{self.types}: {done.stderr}")
            if not self.disassembled:
                return done.stderr, None
            return done.stderr, subprocess.run([tool("nvdisasm"), "-c", target], capture_output=True, text=True, check=True).stdout

    def _number(self, pattern):
        found = re.search(pattern, self._assembled.result()[0])
        return int(found[1]) if found else 0

    @property
    def registers(self):
        return self._number(r"Used (\d+) registers")

    @property
    def shared(self):
        """Bytes of shared memory."""
        return self._number(r"(\d+) bytes smem")

    @property
    def stack(self):
        """Bytes of stack frame."""
        return self._number(r"(\d+) bytes stack frame")

    @property
    def spills(self):
        """Bytes of registers that are stored to memory and loaded again."""
        return self._number(r"(\d+) bytes spill stores") + self._number(r"(\d+) bytes spill loads")

    @functools.cached_property
    def sass(self):
        """What the multiprocessors execute, a `Program`; of kernels whose work is multiplications."""
        return Program.of_sass(self._assembled.result()[1])

    @functools.cached_property
    def doubles(self):
        """The instructions of PTX that have to do with 64-bit floating point: by the operation, not by a register's name."""
        return [opcode for opcode in Program.of_ptx(self.ptx).opcodes if "f64" in opcode.split(".")]

    @functools.cached_property
    def slow_divisions(self):
        """The 64-bit divisions in loops without a loop in them."""
        program = Program.of_ptx(self.ptx)
        return [program.opcodes[k] for loop in program.loops if not loop.inner for k in program.instructions(loop.blocks)
                if re.match(r"(div|rem)\.[su]64", program.opcodes[k])]

    def blocks_per_multiprocessor(self, threads):
        """How many blocks a multiprocessor holds: a warp's registers come by 256, a block's shared memory with 1 KB more."""
        warps = -(-threads // 32)
        registers = -(-self.registers * 32 // 256) * 256 * warps
        shared = -(-self.shared // 128) * 128 + 1024
        return min(MOST_BLOCKS, MOST_THREADS // (warps * 32), REGISTERS // registers, ARCHITECTURES[self.arch][1] // shared)


@functools.cache
def _compiled(dispatcher, types, arch, disassemble):
    return Compiled(dispatcher, types, arch, disassemble)


def compiled(call, arch="sm_90", disassemble=True):
    """A call's kernel, compiled once for each combination of types; only what has multiplications for its work is disassembled."""
    return _compiled(call.kernel.kernel, types_of(call), arch, disassemble and call.flop > 0)


def distinct(calls):
    """One call of each kernel and combination of types, one that says how much it multiplies where there is one."""
    found = {}
    for call in calls:
        key = call.kernel.kernel, types_of(call)
        found[key] = max(call, found.get(key, call), key=lambda call: call.flop)
    return list(found.values())


# ---- reading programs

class Loop(NamedTuple):
    """A loop: its first block, the set of all of its blocks, and the set of those that belong to loops in it."""
    head: int
    blocks: set
    inner: set


class Program:
    """Instructions and the way through them, of PTX or of SASS.

    Parameters
    ----------
    opcodes : list of str
    jumps : dict
        From the position of an instruction that may jump to (labels, whether the next instruction may follow).
    labels : dict of str to int

    Attributes
    ----------
    loops : list of Loop
    """

    def __init__(self, opcodes, jumps, labels):
        self.opcodes = opcodes
        starts = sorted({0, *labels.values(), *(k + 1 for k in jumps)} - {len(opcodes)})
        self.blocks = list(zip(starts, [*starts[1:], len(opcodes)], strict=True))
        block_at = {start: b for b, start in enumerate(starts)}
        self.next = []
        for b, (_, stop) in enumerate(self.blocks):
            targets, falls = jumps.get(stop - 1, ((), True))
            after = {block_at[labels[target]] for target in targets if labels.get(target, len(opcodes)) < len(opcodes)}
            self.next.append(after | ({b + 1} if falls and b + 1 < len(self.blocks) else set()))
        self.loops = self._loops()

    @classmethod
    def of_ptx(cls, text):
        """Labels are $L__BB0_1, jumps `bra`; what follows a predicate may be left out."""
        return cls._read(text, r"\s*(\$\w+):", r"\s*(?:@!?%(?P<predicate>\w+)\s+)?(?P<opcode>[a-z][\w.]*)(?P<rest>[^;]*);",
                         r"\$L\w+", "bra", "brx", ("ret", "exit", "trap"))

    @classmethod
    def of_sass(cls, text):
        """Labels are .L_x_1, jumps `BRA`, with tables of targets `BRX`."""
        address = r"\s*/\*[0-9a-f]+\*/\s+"
        return cls._read(text, r"\s*(\.L_x_\w+):", address + r"(?:@!?(?P<predicate>U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)"
                         r"(?P<rest>[^;]*);", r"\.L_x_\w+", "BRA", "BRX", ("EXIT", "RET", "BPT"))

    @classmethod
    def _read(cls, text, label, instruction, target, branch, table_branch, ends):
        opcodes, jumps, labels = [], {}, {}
        for line in text.splitlines():
            if found := re.match(label, line):
                labels[found[1]] = len(opcodes)
            elif found := re.match(instruction, line):
                kind = found["opcode"].split(".")[0]
                # BRA.DIV, and BRA with a predicate as its operand, are conditional too.
                conditional = found["predicate"] is not None or "DIV" in found["opcode"] or re.match(r"\s*!?U?P\d", found["rest"])
                if kind in (branch, table_branch):
                    jumps[len(opcodes)] = tuple(re.findall(target, found["rest"])), bool(conditional)
                elif kind in ends:
                    jumps[len(opcodes)] = (), bool(conditional)
                opcodes.append(found["opcode"])
        return cls(opcodes, jumps, labels)

    def _loops(self):
        """Natural loops: an edge back to a block that every way from the start leads through, and all that leads to that edge."""
        count = len(self.blocks)
        before = [[a for a in range(count) if b in self.next[a]] for b in range(count)]
        dominators, changed = [1] + [2 ** count - 1] * (count - 1), True      # as bits; what nothing leads to keeps all of them
        while changed:
            changed = False
            for b in range(1, count):
                mask = 2 ** count - 1
                for a in before[b]:
                    mask &= dominators[a]
                mask |= 1 << b
                changed, dominators[b] = changed or mask != dominators[b], mask
        reached, found = self._reached(), {}
        for a in reached:
            for head in self.next[a]:
                if dominators[a] >> head & 1:
                    body, todo = found.setdefault(head, {head}), [a]
                    while todo:
                        if (b := todo.pop()) not in body:
                            body.add(b)
                            todo += [c for c in before[b] if c in reached]
        return [Loop(head, body, set().union(*(other for other in found.values() if other < body))) for head, body in found.items()]

    def _reached(self):
        reached, todo = set(), [0]
        while todo:
            if (b := todo.pop()) not in reached:
                reached.add(b)
                todo += self.next[b]
        return reached

    def instructions(self, blocks):
        """The positions of some blocks' instructions."""
        return [k for b in sorted(blocks) for k in range(*self.blocks[b])]

    def count(self, blocks, kind):
        """How many of some blocks' instructions are of one kind, FFMA for instance."""
        return sum(self.opcodes[k].split(".")[0] == kind for k in self.instructions(blocks))

    def turn(self, loop, kind="FFMA"):
        """(multiplications, instructions) that a turn of a loop executes; what inner loops do is not its own.

        Of the ways through a turn those with the most multiplications count: where a window has one winner of several, every
        winner's way has as many, and the instructions are the mean over all winners.
        """
        own = loop.blocks - loop.inner
        heads = {other.head for other in self.loops}

        @functools.cache
        def ways(b):
            """(the most multiplications from block b to the turn's end, how many ways have as many, their instructions in all)."""
            mine, size = (self.count([b], kind), len(range(*self.blocks[b]))) if b in own else (0, 0)
            ends = [(0, 1, 0)] if loop.head in self.next[b] else []
            back = {c for c in self.next[b] & heads if any(c == other.head and b in other.blocks for other in self.loops)}
            options = ends + [ways(c) for c in self.next[b] & loop.blocks - back]
            most = max((option[0] for option in options), default=-math.inf)
            best = [option for option in options if option[0] == most]
            number = sum(option[1] for option in best)
            return most + mine, number, sum(option[2] for option in best) + number * size

        most, number, total = ways(loop.head)
        return most, total / number

    def multiplying(self, kind="FFMA"):
        """`turn` of each loop whose turns multiply a quarter as much as those of the loop that does most, that one first.

        Of a program without such a loop it is all of it.
        """
        turns = [self.turn(loop, kind) for loop in self.loops if not loop.inner and self.count(loop.blocks, kind)]
        if not turns:
            return [(self.count(range(len(self.blocks)), kind), len(self.opcodes))]
        return sorted((turn for turn in turns if 4 * turn[0] >= max(turns)[0]), reverse=True)


# ---- what a launch has to do

def constants(function):
    """The constants that a kernel was compiled for, and by their names those of the device functions it calls."""
    return {name: SimpleNamespace(**constants(value.py_func)) if hasattr(value, "py_func") else value
            for name, value in inspect.getclosurevars(function).nonlocals.items()}


def arguments_of(call):
    """A call's arguments by name, those of a loss included that comes with its layer: its x is the layer's y."""
    function = call.kernel.kernel.py_func
    values = dict(zip(inspect.signature(function).parameters, call.arguments, strict=True))
    if "arguments" in values:
        part = inspect.getclosurevars(function).nonlocals["loss_part"].py_func
        values = dict(zip(inspect.signature(part).parameters, values.pop("arguments"), strict=True)) | values
    return values


def moved(call, n):
    """The bytes that a call has to move for n pictures: what it reads, once, and what it writes, once."""
    function = call.kernel.kernel.py_func
    k, values = SimpleNamespace(**constants(function)), arguments_of(call)
    arrays = {name: value for name, value in values.items() if isinstance(value, PretendedArray)}
    sizes = {name: array.nbytes for name, array in arrays.items()}
    float_size = next(array.dtype.itemsize for array in arrays.values() if array.dtype.kind == "f")
    if "images" in values:        # of the data set, its order and its labels only this step's
        sizes |= {"images": values["count"], "index": 8 * n, "flip": n, "shift": 16, "corners": 0}
    if "losses" in values and values["t"].dtype.kind == "i":
        sizes["t"] = 8 * n
    for name in ("loss", "lr"):     # one for each step
        sizes[name] = float_size if sizes.get(name) else 0
    if function.__name__ in CORRELATIONS:       # of a gradient with a stride a part
        sizes["y"] = n * k.O * k.OH * k.OW * float_size
    if "chunk" in values:
        counts = values["where"].host.reshape(-1, 4)[:, 0]      # of the sums of each chunk
        sizes["partial"] = int(counts.sum()) * values["chunk"] * float_size
    elif "partial" in values:
        part = getattr(k, "backward_weight_part", None)
        O, run, parts = (part.O, part.C * part.KH * part.KW, values["parts"]) if part else (k.OUT, k.IN, 1)
        sizes["partial"] = parts * O * (run + (values["at_b"] >= 0)) * float_size
    if "options" in values:         # of an update
        for name in ("param", "buffer", "momentum_buffer"):     # read and written
            sizes[name] = 2 * sizes.get(name, 0)
    return sum(sizes.values())


def issued(call, n):
    """What all warps issue, 32 threads at a time whether or not each has something to do: (multiply-adds of a turn, of them all).

    One pair for each part of a kernel; none of a kernel that is not known here.
    """
    function = call.kernel.kernel.py_func
    k, name, blocks = SimpleNamespace(**constants(function)), function.__name__, blocks_of(call)
    if name in CORRELATIONS:
        return [(k.ACC, blocks * -(-k.THREADS // 32) * k.ACC * -(-k.C // k.CK) * k.CK * k.KH * k.KW)]
    if name in ("linear_forward", "linear_loss"):
        return [(1, 8 * blocks * k.IN)]
    if name == "linear_backward":
        *_, x_blocks = call.arguments
        return [(1, 8 * ((blocks - x_blocks) * n + x_blocks * k.OUT))]
    parts = []
    if weight := getattr(k, "backward_weight_part", None):
        outputs = weight.O if weight.SPARSE else weight.O_BLOCKS * weight.OUTPUTS       # what has no winner is left out
        sums, warps = weight.ACC // weight.OC, weight.LANES // 32       # of a thread for one output, for one group of outputs
        parts.append((weight.ACC, n * weight.PH * weight.PW * outputs * sums * weight.C_BLOCKS * warps))
    if inputs := getattr(k, "conv2d_maxpool2d_backward_input", None):
        windows = math.prod(sum(reach(inputs, axis)) for axis in (0, 1))
        taps = inputs.KH * inputs.KW
        parts.append((taps, n * windows * inputs.O * taps * inputs.C_BLOCKS * inputs.LANES // 32))
    return parts


def reach(k, axis):
    """For each of the tiles that an input gradient is made of along an axis: how many rows, or columns, of windows touch it."""
    size, windows, step, window, taps, padding = (
        (k.H, k.PH, k.TH, k.POOL_H, k.KH, k.PAD_H), (k.W, k.PW, k.TW, k.POOL_W, k.KW, k.PAD_W))[axis]
    return [sum(window * i - padding < min(size, start + step) and window * i - padding + window + taps - 2 >= start
                for i in range(windows)) for start in range(0, size, step)]


def issue_cycles(call, code, n):
    """The cycles that one scheduler would need to issue all that a call's warps do besides the multiply-adds of its formula."""
    if not call.flop:
        return 0.0
    turns, cycles = code.sass.multiplying(), 0.0
    parts = issued(call, n) or [(1, call.flop // 64)]
    for unit, slots in parts:
        # A loop's turn is one or several of the part's; where that does not tell which loop is the part's, the worst counts.
        shares = [most / size for most, size in turns]
        own = [most / size for most, size in turns if most % unit == 0] or shares
        cycles += slots / (shares[0] if len(parts) == 1 else min(own))
    return cycles


def micro(seconds):
    return f"{seconds * 1e6:.1f}"


def problems_of(code, threads):
    """What is wrong with a kernel in blocks of so many threads, a line each."""
    faults = [("spills registers", code.spills, "bytes"), ("has a stack frame", code.stack, "bytes"),
              ("declares too much shared memory", code.shared * (code.shared > SHARED), "bytes"),
              ("does not fit on a multiprocessor", code.registers * (not code.blocks_per_multiprocessor(threads)), "registers"),
              ("computes in float64", len(code.doubles) * code.float32, "instructions"),
              ("divides 64-bit numbers in an inner loop", len(code.slow_divisions), "instructions")]
    return [f"{code.name}{code.types}: {fault}, {count} {what}" for fault, count, what in faults if count]


KERNEL_HEADER = ["step", "kernel", "grid", "threads", "registers", "shared bytes", "blocks per SM", "spill bytes", "FFMA"]


def kernel_row(name, call, code):
    """A row of the table of kernels."""
    shares = ", ".join(f"{most / size:.0%}" for most, size in code.sass.multiplying()) if code.disassembled else ""
    return [name, code.name, "x".join(map(str, np.atleast_1d(call.kernel.grid))), threads_of(call), code.registers, code.shared,
            code.blocks_per_multiprocessor(threads_of(call)), code.spills, shares]


def report(model, batches, arch):
    """Print the tables; the list of problems."""
    plans = {n: training_calls(MODELS[model](), n) for n in batches}
    everything = distinct(call for calls in plans.values() for _, call in calls)
    for call in everything:         # all of them, before ptxas is waited for
        compiled(call, arch)
    print(f"{model}, {arch}, grid for batch {batches[0]}\n")
    print(table(KERNEL_HEADER, [kernel_row(name, call, compiled(call, arch)) for name, call in plans[batches[0]]]))
    print("\nFFMA: their share of what a turn of the inner loop executes, the largest first where there are several; where windows "
          "have a winner, the mean over all winners.")
    for n, calls in plans.items():
        rows, totals = [], np.zeros(6)
        for name, call in calls:
            code, size, slots = compiled(call, arch), moved(call, n), sum(slots for _, slots in issued(call, n))
            resident = code.blocks_per_multiprocessor(threads_of(call)) * MULTIPROCESSORS
            arithmetic, memory = call.flop / FLOP_PER_SECOND, size / BYTES_PER_SECOND
            issue = issue_cycles(call, code, n) / (MULTIPROCESSORS * SCHEDULERS) / CLOCK
            rows.append([name, code.name, f"{call.flop / 1e6:.1f}", f"{size / 1e6:.2f}", micro(arithmetic), micro(memory),
                         f"{call.flop / 64 / slots:.0%}" if slots else "", micro(issue) if issue else "", blocks_of(call),
                         f"{blocks_of(call) / resident:.2f}"])
            totals += call.flop / 1e6, size / 1e6, arithmetic, memory, issue, max(arithmetic, memory, issue)
        rows.append(["total", f"{len(calls)} launches", f"{totals[0]:.1f}", f"{totals[1]:.2f}", *map(micro, totals[2:4]), "",
                     micro(totals[4]), "", ""])
        print(f"\nbatch {n}, for one H200: {FLOP_PER_SECOND / 1e12:.0f} TFLOP/s, {BYTES_PER_SECOND / 1e12} TB/s, {MULTIPROCESSORS} "
              f"multiprocessors at {CLOCK / 1e9} GHz; microseconds\n")
        print(table(["step", "kernel", "MFLOP", "MB", "arithmetic", "memory", "busy lanes", "issue", "blocks", "of those resident"],
                    rows))
        print(f"\n{len(calls)} launches a step, {GRAPH_STEPS * len(calls)} a graph of {GRAPH_STEPS} steps. The largest of "
              f"arithmetic, memory and issue of each launch, added up: {micro(totals[5])} us a step.")
    print("\narithmetic, memory: floors, of the formula and of every array read or written once. busy lanes: the formula's share "
          "of the multiply-adds that warps issue.\nissue: an estimate of what issuing takes at the FFMA shares above, while all "
          "multiprocessors are busy. of those resident: blocks for each that can be on a multiprocessor at the same time.")
    return [problem for call in everything for problem in problems_of(compiled(call, arch), threads_of(call))]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="cifar10_quick", help="network")
    parser.add_argument("--batch", type=whole, nargs="+", default=[64, 1024], help="pictures in a step")
    parser.add_argument("--arch", choices=list(ARCHITECTURES), default="sm_90", help="what to compile for")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    with pretended_gpu():
        problems = report(options.model, options.batch, options.arch)
    print()
    print(*problems or ["no problems"], sep="\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
