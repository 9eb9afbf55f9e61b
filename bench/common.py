"""What the benches share: the machine's description, interleaved timing, and the network as PyTorch writes it."""
import os
import platform
import subprocess
import time

import numba
import numpy as np


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
    import torch
    torch.set_num_threads(threads)


def interleaved(functions, rounds, seconds):
    """Times of several functions, called in turn, each a few times a round: an array (functions, rounds) of seconds a call.

    A machine whose speed drifts slows all of them alike, so ratios taken round by round hold.
    """
    calls = []
    for function in functions:
        function()
        start = time.perf_counter()
        function()
        calls.append(max(1, int(seconds / rounds / len(functions) / max(time.perf_counter() - start, 1e-7))))
    times = np.empty((len(functions), rounds))
    for r in range(rounds):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            for _ in range(calls[k]):
                function()
            times[k, r] = (time.perf_counter() - start) / calls[k]
    return times


def ratio(numerator, denominator):
    """Median of the per-round ratios, with the quartiles."""
    low, middle, high = np.percentile(numerator / denominator, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def torch_model(model):
    """The same network with the same weights, in PyTorch."""
    import torch
    net = torch.nn.Sequential(*[getattr(torch.nn, kind)(**arguments) for _, kind, arguments in model.structure()])
    for p, q in zip(net.parameters(), model.parameters(), strict=True):
        p.data = torch.tensor(np.ascontiguousarray(q.data))
    return net
