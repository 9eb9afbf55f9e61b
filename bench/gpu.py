"""The GPU kernels on one NVIDIA GPU: whether they are right, how long each takes, and a training step beside PyTorch's.

    python bench/gpu.py [--quick] [--json gpu.json] [--markdown gpu.md] [--commit NAME]

In this order: versions; results against the CPU's; kernels against what arithmetic and memory allow; training steps beside
PyTorch's; epochs; torch.compile. It ends within 5 minutes, --quick within about one and a minute more where the CPU's kernels are
to be compiled first. Whatever fails is recorded, the rest goes on, and the exit status is 1; it is 2 where there is no GPU. Both
files are written after every part.

Kernels: CUDA events around graphs that repeat one call of a training step, warm, median (quartiles) of several rounds; the time
includes the gap to the next kernel. Steps and epochs: the host's clock around many steps and the wait for the last one; pictures,
order and losses lie on the device. A step of nbcnn gathers and normalises its pictures from bytes; PyTorch's has one batch of
floats that lies there already. PyTorch: the same network and weights, fused SGD, cuDNN's own search for the fastest algorithms,
TF32 off but in rows that say so. All sides take turns; the last row's ratio is that of PyTorch's fastest in a round, TF32 left out,
to nbcnn's graph in that round.
"""
import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import time
import traceback
from pathlib import Path

os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")     # kernels of one block are meant so; read when numba is imported

import numpy as np

import nbcnn
from nbcnn import kernels
from nbcnn.datasets import Dataset, Loader
from nbcnn.layers import ConvPool
from nbcnn.steps import GRAPH_STEPS, DeviceSteps, HostSteps

from common import Parser, positive, ratio, table, torch_model

FLOPS, BYTES = 67e12, 4.3e12        # a second: an H200's float32 arithmetic by its data sheet, and a copy as measured on one
LR = 1e-3                           # small: losses stay finite however many steps are timed
# Rounding moves float32 sums of up to 16,384 terms by 3e-6 of their size. A window whose two largest sums are nearly equal may have
# another winner on the GPU, which changes a gradient by more than rounding does: hence the second, for what five updates change.
KERNEL_TOLERANCE, STEP_TOLERANCE = 1e-5, 1e-2


# ---- results: printed as they come, kept for the files

class Report:
    """What is known so far, printed as it comes; sections, in which an error ends only the section."""

    def __init__(self, json_file, markdown_file, minutes):
        self.files, self.started, self.minutes = (json_file, markdown_file), time.perf_counter(), minutes
        self.data = {"date": time.strftime("%Y-%m-%d %H:%M %z"), "passed": True, "errors": {}, "seconds": {}}
        self.parts = []

    def left(self):
        """Seconds until the time is up."""
        return 60 * self.minutes - (time.perf_counter() - self.started)

    def say(self, text):
        """A paragraph."""
        print(text, flush=True)
        self.parts.append(text)

    def table(self, title, header, rows):
        """A Markdown table under a title."""
        self.say(f"\n## {title}\n\n{table(header, rows)}\n")

    def fail(self, what, error):
        """Note an error."""
        self.data["passed"] = False
        self.data["errors"][what] = f"{type(error).__name__}: {error}"
        print("".join(traceback.format_exception(error)), flush=True)
        self.parts.append(f"\nFAILED: {what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n")

    @contextlib.contextmanager
    def section(self, title):
        """A part, which an error ends; the others go on."""
        before = time.perf_counter()
        print(f"\n== {title} ({self.left():.0f} s left)", flush=True)
        try:
            yield
        except Exception as error:
            self.fail(title, error)
        self.data["seconds"][title] = round(time.perf_counter() - before, 1)
        self.write()

    def write(self):
        """Write both files."""
        json_file, markdown_file = self.files
        Path(json_file).write_text(json.dumps(self.data, indent=1, default=float) + "\n")
        Path(markdown_file).write_text("\n".join(self.parts).strip() + "\n")


def quartiles(seconds):
    """Microseconds: lower quartile, median, upper quartile."""
    return [float(v) for v in np.percentile(np.asarray(seconds) * 1e6, [25, 50, 75])]


def spread(microseconds):
    """Those in words, the median first."""
    low, middle, high = microseconds
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


# ---- versions

def version(package):
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def output(*command):
    """The first line that a command prints, "unknown" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
        return (done.stdout.strip().splitlines() or ["unknown"])[0] if done.returncode == 0 else "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def versions(report, backend, commit):
    """Device, versions, commit."""
    packages = ["numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "numpy", "torch"]
    report.data["machine"] = {
        "device": backend.describe(), "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": output("nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem", "--format=csv,noheader"),
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report.data["versions"] = {"nbcnn": nbcnn.__version__, "python": platform.python_version(),
                               **{package: version(package) for package in packages}}
    report.data["commit"] = commit or output("git", "describe", "--always", "--dirty")
    report.say(f"# The GPU kernels: `python bench/gpu.py`, {report.data['date']}\n\n"
               + "; ".join([f"{name} {value}" for name, value in report.data["machine"].items()])
               + "; " + ", ".join([f"{name} {value}" for name, value in report.data["versions"].items()])
               + f"; commit {report.data['commit']}")


# ---- training on random pictures

def random_pictures(shape, count, seed=0):
    """Random pictures with random labels of ten classes."""
    rng = np.random.default_rng(seed)
    return Dataset(rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, 10, count), list("0123456789"), "random")


def training(make, dataset, batch, device, *, graph=True, lr=LR, momentum=0.0, augment=False):
    """The steps of a training on a device, at the beginning of the first epoch."""
    model = make().to(device)
    loader = Loader(dataset, batch, shuffle=augment, augment=augment)
    scheduler = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    optimizer = nbcnn.SGD(model.parameters(), lr, momentum=momentum)
    scheduler.plan(dataset.images.shape[1:])
    if device == "cpu":
        steps = HostSteps(scheduler, optimizer, loader, lambda labels: labels, None)
    else:
        steps = DeviceSteps(scheduler, optimizer, loader, graph=graph)
    steps.begin(0, 0)
    return steps


def parameters(steps):
    """All parameters in one NumPy vector."""
    return np.concatenate([p.numpy().reshape(-1) for p in steps.scheduler.model.parameters()])


def all_losses(steps):
    """The losses of an epoch on the device."""
    return steps.backend.to_host(steps.losses)


# ---- correctness

def kernel_cases(make, batch):
    """(name, function, arguments) for each kernel of the network, forward and backward.

    The arguments are shapes of arrays to draw, or arrays.
    """
    scheduler = nbcnn.BackpropScheduler(make(), None)
    scheduler.plan(scheduler.model.input_shape)
    for step in scheduler.steps:
        if not step.layer.parameters:
            continue
        x, w, y = (batch, *step.x_shape), step.layer.weight.shape, (batch, *step.y_shape)
        if isinstance(step.layer, ConvPool):
            options = dict(padding=step.layer.conv.padding, pool_size=step.layer.pool.kernel_size, relu=step.layer.relu)
            argmax = np.random.default_rng(1).integers(0, np.prod(options["pool_size"]), y).astype(np.uint8)
            yield (f"{step.name} forward",
                   lambda x, w, b, o=options: kernels.conv2d_maxpool2d_forward(x, w, b, **o)[0], (x, w, w[:1]))
            yield (f"{step.name} backward",
                   lambda dy, argmax, x, w, o=options: kernels.conv2d_maxpool2d_backward(dy, argmax, x, w, **o), (y, argmax, x, w))
        elif isinstance(step.layer, nbcnn.Linear):
            yield f"{step.name} forward", kernels.linear_forward, (x, w, w[:1])
            yield f"{step.name} backward", kernels.linear_backward, (y, x, w)
        else:
            options = dict(stride=step.layer.stride, padding=step.layer.padding, dilation=step.layer.dilation)
            yield f"{step.name} forward", lambda x, w, b, o=options: kernels.conv2d_forward(x, w, b, **o), (x, w, w[:1])
            yield f"{step.name} backward", lambda dy, x, w, o=options: kernels.conv2d_backward(dy, x, w, **o), (y, x, w)
    labels = np.random.default_rng(2).integers(0, 10, batch)
    yield "cross-entropy forward", kernels.cross_entropy_forward, ((batch, 10), labels)
    yield "cross-entropy backward", kernels.cross_entropy_backward, ((batch, 10), labels)


def check_kernels(make, batch, backend):
    """For each kernel (name, whether small integers give the CPU's very numbers, relative error of random data against float64)."""
    def listed(results):
        return list(results) if isinstance(results, tuple) else [results]

    for name, function, arguments in kernel_cases(make, batch):
        def both(draw, arguments=arguments, function=function):
            """The CPU's results in the dtype drawn, the GPU's in float32."""
            drawn = [a if isinstance(a, np.ndarray) else draw(a) for a in arguments]
            moved = [backend.to_device(a.astype(np.float32) if a.dtype.kind == "f" else a) for a in drawn]
            return listed(function(*drawn)), [backend.to_host(result) for result in listed(function(*moved))]

        rng, exact = np.random.default_rng(3), None
        if not name.startswith("cross"):    # there are logarithms in that; else sums of products of numbers up to 4 are exact
            expected, got = both(lambda shape, rng=rng: rng.integers(-4, 5, shape).astype(np.float32))
            exact = all(e.shape == g.shape and bool((e == g).all()) for e, g in zip(expected, got, strict=True))
        expected, got = both(lambda shape, rng=rng: rng.standard_normal(shape))
        yield name, exact, max(relative_error(g, e) for e, g in zip(expected, got, strict=True))


def relative_error(result, expected):
    """|result - expected| / |expected|; infinite where a value is NaN."""
    error = float(np.linalg.norm(np.float64(result) - expected) / np.linalg.norm(expected))
    return error if np.isfinite(error) else np.inf


def check_images_and_update(make, batch, backend):
    """(name, exact, None) for gather, flip, shift, cut out and normalise, and for the update."""
    dataset, rng = random_pictures(make().input_shape, 2 * batch), np.random.default_rng(4)
    index, flip = rng.integers(0, len(dataset), batch), rng.random(batch) < 0.5
    tables = kernels.normalization_table([0.4] * len(dataset.images[0]), None, len(dataset.images[0]), np.float32)
    out = np.empty((batch, *dataset.images.shape[1:]), np.float32)
    on_gpu = backend.to_device(out)
    each = dict(border="reflect", cutout=4, corners=rng.integers(-4, 5, (batch, 2)))
    for name, shift, options in (("images", (1, -2), {}), ("images, each its own way", rng.integers(-2, 3, (batch, 2)), each)):
        kernels.load_images(out, dataset.images, index, flip, shift, tables, **options)
        kernels.load_images(on_gpu, *map(backend.to_device, (dataset.images, index, flip)), shift, backend.to_device(tables),
                            **options)
        yield name, bool((backend.to_host(on_gpu) == out).all()), None
    param, grad, momentum = rng.integers(-8, 9, (3, 1000)).astype(np.float32)
    moved = [backend.to_device(a) for a in (param, grad, momentum)]
    for p, g, m in ((param, grad, momentum), moved):        # powers of two, so that nothing is rounded
        kernels.sgd_step(p, g, m, lr=0.25, momentum=0.5, weight_decay=0.125, nesterov=True)
    yield "update", bool((backend.to_host(moved[0]) == param).all() and (backend.to_host(moved[2]) == momentum).all()), None


def check_steps(make, batch, steps=5):
    """Five training steps on both devices: relative error of the losses, and of what the updates have changed."""
    dataset, runs = random_pictures(make().input_shape, steps * batch), {}
    for device in ("cpu", "cuda"):
        run = training(make, dataset, batch, device, graph=False, lr=0.05, momentum=0.9)
        before, losses = parameters(run), []
        while len(losses) < steps:
            losses += [float(loss) for loss, _ in run.run()]
        runs[device] = np.array(losses), parameters(run) - before
    return [relative_error(got, expected) for expected, got in zip(runs["cpu"], runs["cuda"], strict=True)]


def check_bits(make, batch, steps):
    """Whether a training is the same bits twice, and with and without graphs: two epochs with momentum and a short last batch."""
    dataset, results = random_pictures(make().input_shape, steps * batch + batch // 2), []
    for graph in (True, True, False):
        run = training(make, dataset, batch, "cuda", graph=graph, lr=0.05, momentum=0.9, augment=True)
        losses = []
        for epoch in range(2):
            run.begin(epoch)
            run.start(len(run.loader))
            losses.append(all_losses(run))
        assert np.isfinite(losses).all(), f"losses that are not finite: {losses}"
        results.append(parameters(run).tobytes() + np.array(losses).tobytes())
    return results[0] == results[1], results[0] == results[2]


def kernels_right(report, make, batch, backend):
    """Raise unless all kernels are right."""
    rows, wrong = [], []
    for name, exact, error in [*check_images_and_update(make, batch, backend), *check_kernels(make, batch, backend)]:
        rows.append([name, {True: "equal", False: "DIFFERENT", None: ""}[exact], "" if error is None else f"{error:.1e}"])
        wrong += [name] * (exact is False or (error is not None and not error < KERNEL_TOLERANCE))
        print(*rows[-1], sep="  ", flush=True)
    report.data["correctness"] = [dict(zip(("what", "integers", "error"), row, strict=True)) for row in rows]
    report.table(f"Kernels against the CPU's, {batch} pictures",
                 ["kernel", "small integers", "relative error of random data against float64"], rows)
    if wrong:
        raise AssertionError(f"wrong results: {', '.join(wrong)}")


def steps_right(report, make, batch):
    """Raise unless training steps give what the CPU's do."""
    losses, change = check_steps(make, batch)
    report.data["steps against the CPU"] = {"losses": losses, "change": change}
    report.say(f"\nFive training steps against the CPU's: relative error of losses {losses:.1e}, of what is learned {change:.1e}")
    if not max(losses, change) < STEP_TOLERANCE:
        raise AssertionError(f"wrong training steps: {losses:.1e} and {change:.1e}")


def bits_equal(report, make, batch, steps):
    """Raise unless a training gives the same bits again."""
    twice, graphs = check_bits(make, batch, steps)
    report.data["equal bits"] = {"twice": twice, "with and without graphs": graphs}
    report.say(f"\nTwo epochs of {steps + 1} steps with momentum: twice with graphs, {'equal bits' if twice else 'DIFFERENT'}; "
               f"without graphs, {'equal bits' if graphs else 'DIFFERENT'}")
    if not (twice and graphs):
        raise AssertionError("a training gave other bits")


# ---- what the machine reaches

def event_seconds(start, repeats):
    """Seconds on the device of what start() starts, called so many times in a row behind one that is not timed."""
    from nbcnn.kernels.cuda.compat import SIMULATED, cuda
    start()
    if SIMULATED:
        before = time.perf_counter()
        for _ in range(repeats):
            start()
        return (time.perf_counter() - before) / repeats
    first, last = cuda.event(), cuda.event()
    first.record()
    for _ in range(repeats):
        start()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def ceilings(report, backend, torch, numbers, size):
    """Bytes a second of a large copy and, with PyTorch, float32 operations a second of a large product."""
    a = backend.to_device(np.random.default_rng(0).random(numbers, np.float32))
    b = backend.empty(a.shape, a.dtype)
    found = {"bytes": 8 * numbers / min(event_seconds(lambda: b.copy_to_device(a), 5) for _ in range(3))}
    if torch is not None:
        device = torch_device(torch)
        x, y = (torch.randn(size, size, device=device) for _ in range(2))
        product = torch.empty_like(x)
        found["flops"] = 2 * size ** 3 / min(event_seconds(lambda: torch.mm(x, y, out=product), 3) for _ in range(3))
    report.data["ceilings"] = found
    report.say("Measured: " + ", ".join(f"{value / 1e12:.2f} T{name}/s" for name, value in found.items()))


# ---- kernels

def flattened(arguments):
    """The arguments of a call, those of the calls included in it too."""
    return [a for item in arguments for a in (flattened(item) if isinstance(item, tuple) else [item])]


def touched(steps, name, call, n):
    """Bytes that a call must read or write: each array given to it once, and of those for all steps and parameters its own part."""
    scheduler, size = steps.scheduler, steps.scheduler.model.dtype.itemsize
    partials, step = scheduler._partials, next((step for step in scheduler.steps if step.name == name), None)
    if step is None:        # those of all parameters
        own = sum(rows(n) * parameter.size for parameter, rows in partials.parts.items())
    else:
        own = step.operation.parts(n) * sum(parameter.size for parameter in step.layer.parameters.values())
    pictures = n * int(np.prod(steps.kind[:3]))
    parts = {id(steps.images): pictures, id(steps.index): 8 * n, id(steps.labels): 8 * n, id(steps.flips): n,
             id(steps.shifts): 16, id(steps.corners): 0, id(steps.rates): size, id(steps.losses): size,
             id(partials.partial): own * size}
    arrays = [a for a in flattened(call.arguments) if hasattr(a, "dtype") and getattr(a, "ndim", 0)]
    total = sum(parts.get(id(a), a.size * a.dtype.itemsize) for a in arrays)
    written_too = scheduler.model.vector.data       # by the update
    return total + sum(a.size * a.dtype.itemsize for a in arrays if a is written_too)


def kernel_times(report, make, dataset, batch, rounds, rates):
    """A row for each call of a training step."""
    steps = training(make, dataset, batch, "cuda", graph=False, lr=0.0)     # so that parameters stay what they are
    steps.start(min(2, len(steps.loader)))
    # Four such graphs in a row are started, in which the loss moves on from step to step.
    backend, repeats = steps.backend, min(32, len(steps.loader) // 4)
    assert repeats, f"expected at least four steps of pictures, got {len(steps.loader)}"
    labelled, kept = steps.calls(batch), []
    for name, call in labelled:
        try:
            graph, how = backend.Graph([call] * repeats), "graph"
            start = graph.launch
        except Exception as error:
            report.fail(f"a graph of {name} {call.kernel.__name__}", error)

            def start(call=call):
                backend.run([call] * repeats)
            how = "launches"
        seconds = []
        for _ in range(rounds):
            backend.write(steps.state, np.zeros(3, np.int64))
            backend.synchronize()
            seconds.append(event_seconds(start, 3) / repeats)
        kept.append({"batch": batch, "step": name, "kernel": call.kernel.__name__, "us": quartiles(seconds), "timed": how,
                     "flop": call.flop, "bytes": touched(steps, name, call, batch), "grid": call.kernel.grid,
                     "block": call.kernel.block, "floor_us": [1e6 * call.flop / rates[0], 0]})
        row = kept[-1]
        row["floor_us"][1] = 1e6 * row["bytes"] / rates[1]
        print(name, row["kernel"], spread(row["us"]), "us", sep="  ", flush=True)
    backend.synchronize()
    report.data.setdefault("kernels", []).extend(kept)
    rows = [[row["step"], row["kernel"], spread(row["us"]), f"{row['flop'] / 1e6:.1f}", f"{row['bytes'] / 1e6:.2f}",
             *[f"{floor:.1f}" for floor in row["floor_us"]], f"{max(row['floor_us']) / row['us'][1]:.0%}"] for row in kept]
    total, floor = sum(row["us"][1] for row in kept), sum(max(row["floor_us"]) for row in kept)
    rows.append(["all", len(kept), f"{total:.1f}", f"{sum(row['flop'] for row in kept) / 1e6:.1f}",
                 f"{sum(row['bytes'] for row in kept) / 1e6:.2f}", "", f"{floor:.1f}", f"{floor / total:.0%}"])
    report.table(f"Kernels of a training step, batch {batch}",
                 ["step", "kernel", "us", "MFLOP", "MB", "arithmetic floor us", "byte floor us", "larger floor / time"], rows)


# ---- training steps

class Mine:
    """nbcnn's side: an epoch of steps."""

    def __init__(self, make, dataset, batch, graph):
        self.steps = training(make, dataset, batch, "cuda", graph=graph)
        self.count = len(self.steps.loader)
        self.run()

    def prepare(self):
        self.steps.begin(0)
        self.steps.backend.synchronize()

    def run(self):
        self.prepare()
        before = time.perf_counter()
        self.steps.start(self.count)
        self.steps.backend.synchronize()
        return (time.perf_counter() - before) / self.count

    def loss(self):
        """The largest loss of the epoch; NaN where there is one."""
        return float(np.max(all_losses(self.steps)))


class Theirs:
    """PyTorch's side: so many calls of a function that does `at_once` steps and gives the last loss."""

    def __init__(self, torch, function, count, at_once=1):
        self.function, self.calls, self.at_once, self.wait = function, max(1, count // at_once), at_once, synchronizer(torch)
        self.run()

    def run(self):
        self.wait()
        before = time.perf_counter()
        for _ in range(self.calls):
            self.last = self.function()
        self.wait()
        return (time.perf_counter() - before) / self.calls / self.at_once

    def loss(self):
        return float(self.last)


def torch_device(torch):
    """Where PyTorch computes: beside a simulated GPU on the CPU, to try this script out."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronizer(torch):
    """A function that waits for PyTorch's device."""
    return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None


def torch_step(torch, net, x, t, compiled=False):
    """A training step, a function that gives the loss."""
    optimizer, criterion = torch.optim.SGD(net.parameters(), lr=LR, fused=True), torch.nn.CrossEntropyLoss()

    def forward():
        return criterion(net(x), t)

    forward = torch.compile(forward, dynamic=False) if compiled else forward

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()
    return step


def captured(torch, step, net, count):
    """A function that replays a CUDA graph of so many steps, and gives the last loss."""
    from nbcnn.kernels.cuda.compat import cuda
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    net.zero_grad(set_to_none=True)
    gc.collect()
    graph, last = torch.cuda.CUDAGraph(), None
    # Nothing may be freed meanwhile, neither by numba nor, in another thread, by anything else.
    with cuda.defer_cleanup(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(count):
            last = step()
    torch.cuda.synchronize()

    def replay():
        graph.replay()
        return last
    return replay


@contextlib.contextmanager
def tf32(torch, on):
    """Whether PyTorch may round operands to TF32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def torch_batch(torch, dataset, first, batch):
    """Pictures as floats in [0, 1], and labels, on PyTorch's device."""
    part, table = slice(first, first + batch), kernels.normalization_table(None, None, 1, np.float32)[0]
    return [torch.from_numpy(a).to(torch_device(torch)) for a in (table[dataset.images[part]], dataset.labels[part])]


def agreement(torch, make, dataset, batch, steps=5):
    """The largest relative difference of the losses of five steps, nbcnn's and PyTorch's."""
    mine = training(make, dataset, batch, "cuda", graph=False, lr=0.05)
    mine.start(steps)
    net = torch_model(make()).to(torch_device(torch))
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.05), []
    for k in range(steps):
        x, t = torch_batch(torch, dataset, k * batch, batch)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.abs(all_losses(mine)[:steps] / losses - 1).max())


def torch_sides(report, torch, make, dataset, batch, count):
    """PyTorch's sides by name; one that fails is left out."""
    x, t = torch_batch(torch, dataset, 0, batch)
    plain, last, sides = torch.contiguous_format, torch.channels_last, {}
    at_once = min(GRAPH_STEPS, count)

    def add(name, memory_format, graph, on=False):
        try:
            with tf32(torch, on):
                net = torch_model(make()).to(x.device, memory_format=memory_format)
                step = torch_step(torch, net, x.contiguous(memory_format=memory_format), t)
                replay = captured(torch, step, net, at_once) if graph else step
                sides[name] = Theirs(torch, replay, count, at_once if graph else 1)
        except Exception as error:
            report.fail(f"PyTorch {name}, batch {batch}", error)

    add("eager", plain, False)
    add("eager, channels_last", last, False)
    if x.device.type == "cuda":
        add("graph", plain, True)
        add("graph, channels_last", last, True)
        add("graph, TF32", plain, True, True)
        add("graph, channels_last, TF32", last, True, True)
    return sides


def compiled_sides(report, torch, make, dataset, batch, count):
    """torch.compile's sides by name."""
    x, t = torch_batch(torch, dataset, 0, batch)
    sides, at_once = {}, min(GRAPH_STEPS, count)
    net = torch_model(make()).to(x.device)
    step = torch_step(torch, net, x, t, compiled=True)
    with time_limit(max(1, report.left() - 10)):
        step()
    if x.device.type == "cuda":
        sides["torch.compile, graph"] = Theirs(torch, captured(torch, step, net, at_once), count, at_once)
    else:
        sides["torch.compile"] = Theirs(torch, step, count)
    return sides


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeoutError in a block that takes longer."""
    def stop(number, frame):
        raise TimeoutError(f"not done after {seconds:.0f} s")
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def compare(report, title, mine, theirs, batch, rounds):
    """Let all sides take turns; a table."""
    sides = {**mine, **{f"PyTorch {name}": side for name, side in theirs.items()}}
    times = np.array([[side.run() for side in sides.values()] for _ in range(rounds)]).T
    losses = {name: side.loss() for name, side in sides.items()}
    fair = [k for k, name in enumerate(sides) if name.startswith("PyTorch") and "TF32" not in name]
    own = list(sides).index("nbcnn graph")
    rows = []
    for k, name in enumerate(sides):
        rows.append([name, spread(quartiles(times[k])), f"{batch / np.median(times[k]):,.0f}",
                     "" if k == own else ratio(times[k], times[own])])
        report.data.setdefault("steps", []).append({"table": title, "batch": batch, "side": name, "us": quartiles(times[k]),
                                                    "rounds_us": (times[k] * 1e6).round(2).tolist(), "loss": losses[name]})
    if fair:
        best = ratio(times[fair].min(0), times[own])
        rows.append(["PyTorch's best without TF32", "", "", best])
        report.data.setdefault("ratios", []).append({"table": title, "batch": batch, "best of PyTorch's / nbcnn's": best})
    report.table(f"{title}, batch {batch}, {rounds} rounds", ["side", "us a step", "pictures/s", "time / nbcnn graph's"], rows)
    bad = [name for name, loss in losses.items() if not np.isfinite(loss)]
    if bad:
        raise AssertionError(f"a loss is not finite: {', '.join(bad)}")


# ---- epochs

def epochs(report, make, dataset, batches, rounds):
    """Epochs with the data on the device, shuffled and augmented: all of it, and what the host's drawing and copying take of it."""
    rows = []
    for batch in batches:
        steps = training(make, dataset, batch, "cuda", augment=True)
        times = []
        for epoch in range(rounds + 2):     # the first two compile, and record graphs
            before = time.perf_counter()
            steps.begin(epoch)
            steps.backend.synchronize()
            begun = time.perf_counter()
            steps.start(len(steps.loader))
            steps.backend.synchronize()
            times.append((begun - before, time.perf_counter() - before))
        assert np.isfinite(all_losses(steps)).all(), f"batch {batch}: a loss is not finite"
        begin, whole = np.array(times[2:]).T
        whole_ms, begin_ms = ([us / 1e3 for us in quartiles(part)] for part in (whole, begin))
        report.data.setdefault("epochs", []).append(
            {"batch": batch, "pictures": len(dataset), "ms": whole_ms, "begin_ms": begin_ms})
        rows.append([batch, len(steps.loader), spread(whole_ms), spread(begin_ms), f"{len(dataset) / np.median(whole):,.0f}"])
        print(*rows[-1], sep="  ", flush=True)
    report.table(f"An epoch of {len(dataset):,} pictures on the device",
                 ["batch", "steps", "ms", "of which order and augmentation, ms", "pictures/s"], rows)


# ---- all of it

def tiny():
    """A network for trying this out in the simulator."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(1, 2, 3, padding=1)), ("maxpool1", nbcnn.MaxPool2d(2)), ("flatten", nbcnn.Flatten()),
        ("linear1", nbcnn.Linear(8, 10))], input_shape=(1, 4, 4))


# The network; batches; pictures behind the steps that are timed, and of an epoch; steps of the trainings that are to be equal;
# numbers to copy, rows of the matrices to multiply; rounds.
SIZES = {
    "full": dict(make=nbcnn.models.cifar10_quick, batches=(64, 256, 1024), pictures=16384, epoch=50_000, bits=20, numbers=2 ** 26,
                 product=8192, rounds=11),
    "quick": dict(make=nbcnn.models.cifar10_quick, batches=(64, 1024), pictures=8192, epoch=50_000, bits=10, numbers=2 ** 26,
                  product=4096, rounds=5),
    "tiny": dict(make=tiny, batches=(2, 4), pictures=16, epoch=5, bits=2, numbers=64, product=64, rounds=1),
}


def run(report, backend, torch, options, *, make, batches, pictures, epoch, bits, numbers, product, rounds):
    """All sections."""
    rates = options.flops, options.bytes
    report.data["rates"] = dict(zip(("flops", "bytes"), rates, strict=True))
    dataset = random_pictures(make().input_shape, pictures)
    with report.section("versions"):
        versions(report, backend, options.commit)
        if torch is None:
            report.say("\nPyTorch is not installed or sees no GPU: nothing is compared with it.")
    with report.section("kernels against the CPU"):
        kernels_right(report, make, batches[0], backend)
    with report.section("steps against the CPU"):
        steps_right(report, make, batches[0])
    with report.section("equal bits"):
        bits_equal(report, make, batches[0], bits)
    with report.section("ceilings"):
        ceilings(report, backend, torch, numbers, product)
        report.say(f"Floors below: {rates[0] / 1e12:.1f} TFLOP/s, {rates[1] / 1e12:.2f} TB/s")
    for batch in (batches[0], batches[-1]):
        with report.section(f"kernels, batch {batch}"):
            kernel_times(report, make, dataset, batch, rounds, rates)
    mine = {}
    if torch is not None:
        with report.section("agreement with PyTorch"):
            error = agreement(torch, make, dataset, batches[0], min(5, pictures // batches[0]))
            report.data["agreement"] = error
            report.say(f"\nFive losses agree with PyTorch's to {error:.1e}")
            assert error < 1e-3, f"the losses of nbcnn and PyTorch differ by {error:.1e}"
    for batch in batches:
        with report.section(f"steps, batch {batch}"):
            mine[batch] = {"nbcnn eager": Mine(make, dataset, batch, False), "nbcnn graph": Mine(make, dataset, batch, True)}
            count = len(mine[batch]["nbcnn graph"].steps.loader)
            theirs = {} if torch is None else torch_sides(report, torch, make, dataset, batch, count)
            compare(report, "A training step", mine[batch], theirs, batch, rounds)
    with report.section("epochs"):
        epochs(report, make, random_pictures(make().input_shape, epoch, 1), (batches[0], batches[-1]), rounds)
    if torch is not None and not options.no_compile:
        for batch in (batches[0], *batches[:0:-1]):     # the largest before the others, should the time run out
            if report.left() < 30 * (torch_device(torch).type == "cuda"):
                report.say(f"\nNo time left for torch.compile at batch {batch}.")
                continue
            with report.section(f"torch.compile, batch {batch}"):
                own = {"nbcnn graph": mine.get(batch, {}).get("nbcnn graph") or Mine(make, dataset, batch, True)}
                theirs = compiled_sides(report, torch, make, dataset, batch, own["nbcnn graph"].count)
                compare(report, "A training step with torch.compile", own, theirs, batch, rounds)


def find_torch(simulated):
    """PyTorch, None where it is not installed or has no GPU to compare on."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available() and not simulated:
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return torch


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--json", default="gpu.json", metavar="FILE", help="all figures")
    parser.add_argument("--markdown", default="gpu.md", metavar="FILE", help="the tables")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes: about a minute, torch.compile left out")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes long to compile")
    parser.add_argument("--minutes", type=positive, default=5.0, help="after which torch.compile is left out")
    parser.add_argument("--flops", type=positive, default=FLOPS, help="float32 operations a second that the floors assume")
    parser.add_argument("--bytes", type=positive, default=BYTES, help="bytes a second that the floors assume")
    parser.add_argument("--commit", help="what was measured, where git cannot say")
    parser.add_argument("--simulate", action="store_true", help=argparse.SUPPRESS)      # with NUMBA_ENABLE_CUDASIM=1: tiny sizes
    options = parser.parse_args(arguments)
    try:
        from nbcnn.kernels import cuda as backend
        reason = backend.unavailable()
    except ImportError as error:
        backend, reason = None, error
    if backend is None or (reason and not options.simulate):
        print(f"{parser.prog}: no GPU: {reason}", flush=True)
        return 2
    options.no_compile |= options.quick
    report = Report(options.json, options.markdown, options.minutes)
    torch = find_torch(bool(reason))
    run(report, backend, torch, options, **SIZES["tiny" if options.simulate else "quick" if options.quick else "full"])
    seconds = time.perf_counter() - report.started
    report.data["total_seconds"] = round(seconds, 1)
    print(f"\n{'passed' if report.data['passed'] else 'FAILED: ' + ', '.join(report.data['errors'])} after {seconds:.0f} s; "
          f"{options.json}, {options.markdown}", flush=True)
    report.write()
    return 0 if report.data["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
