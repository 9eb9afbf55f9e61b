"""Tests on a GPU, on the shapes that the CIFAR-10 network has; skipped where there is none, so also in the simulator.

To try the tests themselves, most of them run in the simulator on tiny shapes:

    NUMBA_ENABLE_CUDASIM=1 NBCNN_TINY_GPU_TESTS=1 python -m pytest tests/gpu
"""
import functools
import os
from types import SimpleNamespace

import numpy as np
import pytest

import nbcnn
from nbcnn.datasets import Dataset

TINY = os.environ.get("NBCNN_TINY_GPU_TESTS", "0") not in ("", "0")


@functools.cache
def no_gpu():
    """Why these tests cannot run; "" where they can."""
    try:
        from nbcnn.kernels.cuda.compat import SIMULATED, unavailable
    except ImportError:
        return "the extra cuda13 or cuda12 is not installed"
    return "" if TINY and SIMULATED else unavailable()


def pytest_runtest_setup():
    if reason := no_gpu():
        pytest.skip(f"no GPU: {reason}")        # from here, so that all are one line of the summary


@pytest.fixture(scope="session")
def cuda():
    """The GPU backend."""
    from nbcnn.kernels import cuda
    return cuda


@pytest.fixture
def real():
    """Leaves out what takes too long in the simulator."""
    if TINY:
        pytest.skip("too slow in the simulator")


@pytest.fixture(scope="session")
def sizes():
    """The shapes: x and w of each layer; the network, its batch size, how many steps graphs of several ones need."""
    if TINY:
        return SimpleNamespace(
            convolutions={"conv1": ((2, 1, 4, 5), (3, 1, 3, 3)), "conv2": ((2, 3, 4, 4), (2, 3, 3, 2)),
                          "conv3": ((1, 2, 3, 4), (5, 2, 2, 3))},
            linears={"linear1": ((3, 5), (4, 5)), "linear2": ((3, 4), (2, 4))}, make=tiny_network, batch=2, graph_steps=2, epochs=3)
    return SimpleNamespace(
        convolutions={"conv1": ((64, 3, 32, 32), (32, 3, 5, 5)), "conv2": ((64, 32, 16, 16), (32, 32, 5, 5)),
                      "conv3": ((64, 32, 8, 8), (64, 32, 5, 5))},
        linears={"linear1": ((64, 1024), (64, 1024)), "linear2": ((64, 64), (10, 64))},
        make=nbcnn.models.cifar10_quick, batch=64, graph_steps=8, epochs=10)


def tiny_network(**options):
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(1, 2, 3, padding=1)), ("maxpool1", nbcnn.MaxPool2d(2)), ("flatten", nbcnn.Flatten()),
        ("linear1", nbcnn.Linear(8, 3)), ("linear2", nbcnn.Linear(3, 2))], input_shape=(1, 4, 4), **options)


@pytest.fixture
def pictures(sizes):
    """A function that draws so many random pictures that the network takes."""
    def draw(count, choices=256, seed=0):
        model, rng = sizes.make(), np.random.default_rng(seed)
        classes = model.shapes(model.input_shape)["linear2"][0]
        images = rng.integers(0, choices, (count, *model.input_shape)) * (255 // (choices - 1))
        return Dataset(images.astype(np.uint8), rng.integers(0, classes, count), [str(k) for k in range(classes)], "random")
    return draw
