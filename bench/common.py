"""What the benches share: networks, also in PyTorch, the machine's description and peak, timing, whole processes, flags."""
import argparse
import functools
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from unittest.mock import patch

import numba
import numpy as np

import nbcnn
from nbcnn.kernels.cpu import launch
from nbcnn.kernels.operation import Call


def pyramid(size, channels):
    """3x3 convolutions to `channels`, twice and four times as many, each with ReLU and 2x2 max-pooling; then a linear layer."""
    layers, C = [], 3
    for O in (channels, 2 * channels, 4 * channels):
        layers += [nbcnn.Conv2d(C, O, 3, padding=1), nbcnn.ReLU(), nbcnn.MaxPool2d(2)]
        C = O
    layers += [nbcnn.Flatten(), nbcnn.Linear(C * (size // 8) ** 2, 10)]
    return nbcnn.Sequential(layers, input_shape=(3, size, size))


def strided():
    """3x3 convolutions of stride 2 to 32, 64 and 128 channels, each with ReLU and without pooling; then a linear layer."""
    layers, C = [], 3
    for O in (32, 64, 128):
        layers += [nbcnn.Conv2d(C, O, 3, stride=2, padding=1), nbcnn.ReLU()]
        C = O
    layers += [nbcnn.Flatten(), nbcnn.Linear(C * 4 * 4, 10)]
    return nbcnn.Sequential(layers, input_shape=(3, 32, 32))


MODELS = {
    "cifar10_quick": nbcnn.models.cifar10_quick,
    "cifar10_quick_relu": nbcnn.models.cifar10_quick_relu,
    "vgg32": lambda: pyramid(32, 64),
    "vgg64": lambda: pyramid(64, 64),
    "strided": strided,
    "resnet20": nbcnn.models.resnet20,
    "airbench94": nbcnn.models.airbench94,
}


def torch_model(model):
    """The same network with the same weights, in PyTorch."""
    import torch
    def layer(kind, arguments):
        return torch.nn.AdaptiveAvgPool2d(1) if kind == "GlobalAvgPool2d" else getattr(torch.nn, kind)(**arguments)

    class Net(torch.nn.Module):
        def forward(self, x):
            values = {"input": x}
            for name, inputs in model.inputs.items():
                kind, read = type(model.layers[name]).__name__, [values[value] for value in inputs]
                if kind == "Add":
                    values[name] = sum(read[1:], read[0])
                elif kind == "Scale":
                    values[name] = read[0] * model.layers[name].factor
                else:
                    values[name] = getattr(self, name)(read[0])
            return values[name]
    net = Net()
    for name, kind, arguments, *_ in model.structure():
        if kind not in ("Add", "Scale"):
            net.add_module(name, layer(kind, arguments))
    net.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name not in model.frozen
    return net


def training(model, batch, precision="f32"):
    """nbcnn's training step on random images, a call without arguments that returns the loss; the images, the labels."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, *model.input_shape), dtype=np.float32), rng.integers(0, 10, batch)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision=precision)
    optimizer = nbcnn.SGD(model.parameters(), lr=0.01)
    view = step.images(batch)
    view[...] = images
    return lambda: step.train_step(view, labels, optimizer), images, labels


def recorded(function):
    """The calls of kernels that a function makes, a list of `Call`: also those of the loss and the optimizer."""
    calls = []

    def record(kernel, *arguments):
        calls.append(Call(kernel, arguments))
        return kernel(*arguments)

    def record_all(several):
        for call in several:
            calls.append(call)
            call.kernel(*call.arguments)

    instead = {launch.launch: record, launch.run: record_all}
    with ExitStack() as stack:
        for module in [module for name, module in sys.modules.items() if name.startswith("nbcnn.")]:
            for name in ("launch", "run"):
                found = getattr(module, name, None)
                if callable(found) and found in instead:
                    stack.enter_context(patch.object(module, name, instead[found]))
        function()
    return calls


def megaflop(model, batch):
    """MFLOP of a training step for an image: what the formulas of the kernels need, backward only where a maximum stood."""
    run, _, _ = training(model, batch)
    return sum(call.flop for call in recorded(run)) / batch / 1e6


def describe(threads):
    """One paragraph: processor, threads, threading layer, versions, commit."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.processor()) if os.path.exists("/proc/cpuinfo") else platform.processor()
    here = os.path.dirname(os.path.abspath(__file__))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here).stdout.strip()
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "none yet"
    try:
        import torch
        torch_version = f", torch {torch.__version__}"
    except ImportError:
        torch_version = ""
    return (f"{model}, {threads} threads of {os.cpu_count()} cores, threading layer {layer}; "
            f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}{torch_version}; "
            f"commit {commit or 'unknown'}")


def set_threads(threads):
    """The same number of threads on both sides."""
    numba.set_num_threads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@functools.cache
def peak(threads):
    """GFLOP/s that the multipliers of so many cores reach in float32, measured once."""
    from nbcnn.profile import fma_peak
    return fma_peak(threads)


def peaks(threads):
    """The peak for each of several numbers of threads, in words."""
    return "peak " + ", ".join(f"{peak(count):.0f} GFLOP/s with {count} thread{'s' * (count > 1)}" for count in threads)


def share(rate, threads):
    """GFLOP/s as a share of the peak."""
    return f"{rate / peak(threads):.0%}"


def interleaved(functions, rounds, seconds, threads=None):
    """Times of several functions, called in turn, each a few times a round: an array (functions, rounds) of seconds a call.

    A machine whose speed drifts slows all of them alike, so ratios taken round by round hold. A turn begins with a call that
    is not timed; where `threads` gives a number for each function, it is set before that.
    """
    def turn(k, calls):
        if threads:
            set_threads(threads[k])
        functions[k]()
        start = time.perf_counter()
        for _ in range(calls):
            functions[k]()
        return (time.perf_counter() - start) / calls

    calls = [max(1, int(seconds / rounds / len(functions) / max(turn(k, 1), 1e-7))) for k in range(len(functions))]
    return np.array([[turn(k, calls[k]) for k in range(len(functions))] for _ in range(rounds)]).T


def process(command, **environment):
    """Run a command as a process of its own: its seconds, its largest resident set in MiB, and what it printed."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as child:
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"exit status {child.returncode} of {' '.join(map(str, command))}")
    # Linux counts in KiB, macOS in bytes. Never less than what the parent holds when it starts the process, here about 0.1 GiB.
    return seconds, usage.ru_maxrss / (1024 ** 2 if sys.platform == "darwin" else 1024), output


def ratio(numerator, denominator):
    """Median of the per-round ratios, with the quartiles."""
    low, middle, high = np.percentile(np.asarray(numerator) / np.asarray(denominator), [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


class Parser(argparse.ArgumentParser):
    """Described by the first line of a script's documentation; says in one line what is wrong."""

    def __init__(self, documentation):
        super().__init__(description=documentation.split("\n")[0], allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def whole(text, minimum=1, maximum=None):
    """A whole number from the command line."""
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum or value > (maximum or value):
        limit = f" and at most {maximum}" if maximum else ""
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}{limit}, got {text!r}")
    return value


def thread_count(text):
    """A number of threads from the command line."""
    return whole(text, 1, numba.config.NUMBA_NUM_THREADS)


def positive(text, of=""):
    """A number above 0 from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number{of} above 0, got {text!r}")
    return value


def duration(text):
    """Seconds from the command line."""
    return positive(text, " of seconds")
