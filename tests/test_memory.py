"""How much memory buffers take is known before they are there, and has a limit."""
import os
import tracemalloc

import numpy as np
import pytest

import nbcnn
from nbcnn import memory


@pytest.fixture(autouse=True)
def no_limit():
    yield
    nbcnn.set_max_memory(None)


def network(dtype=np.float32):
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 32, 5, padding=2)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
        ("conv2", nbcnn.Conv2d(32, 16, 3, stride=2, padding=4, dilation=2)), ("gelu", nbcnn.GELU()),
        ("maxpool2", nbcnn.MaxPool2d(3, stride=2, padding=1)), ("avgpool", nbcnn.AvgPool2d(2)), ("flatten", nbcnn.Flatten()),
        ("linear", nbcnn.Linear(64, 10)),
    ], input_shape=(3, 32, 32), dtype=dtype)


def joined(dtype=np.float32):
    """Gradients that are handed on, and ones that are added up in memory of their own; statistics larger than what they are of."""
    return nbcnn.Network([
        ("conv1", nbcnn.Conv2d(3, 16, 3, padding=1)), ("conv2", nbcnn.Conv2d(16, 16, 3, padding=1)),
        ("add", nbcnn.Add(), ["conv1", "conv2"]), ("concat", nbcnn.Concat(), ["add", "conv1", "conv1"]),
        ("avgpool", nbcnn.GlobalAvgPool2d()), ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(48, 4000)),
        ("norm", nbcnn.BatchNorm1d(4000)), ("linear2", nbcnn.Linear(4000, 10)),
    ], input_shape=(3, 32, 32), dtype=dtype)


@pytest.mark.parametrize("make", [network, joined])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("need_dx", [False, True])
def test_what_is_foretold_is_what_is_allocated(make, dtype, backward, fuse, need_dx):
    """To a percent, and 64 KiB for what aligns the buffers and lists what is to be run."""
    step = nbcnn.BackpropScheduler(make(dtype), nbcnn.CrossEntropyLoss(), fuse=fuse, need_dx=need_dx)
    step.plan((3, 32, 32))
    foretold = sum(step._bytes(64, backward))
    tracemalloc.start()
    try:
        step.reserve(64, backward=backward)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert abs(taken - foretold) < 0.01 * foretold + 2**16


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_allocated():
    model = network()
    step, images, labels = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), np.ones((64, 3, 32, 32), np.float32), [1] * 64
    step.plan((3, 32, 32))
    forward, both = (sum(step._bytes(64, backward)) for backward in (False, True))
    nbcnn.set_max_memory(forward - 1)
    tracemalloc.start()
    try:
        with pytest.raises(MemoryError, match=rf"^conv1\+relu1\+maxpool1: expected buffers of at most {forward - 1:,} bytes for "
                                              rf"all layers and a batch of 64, got {forward:,}, .* of them for this layer; smaller "
                                              "batches need less, and --max-memory or nbcnn.set_max_memory allows more$"):
            step.forward(images, labels)
        assert tracemalloc.get_traced_memory()[1] < forward / 10
    finally:
        tracemalloc.stop()
    nbcnn.set_max_memory(both - 1)
    step.forward(images, labels)
    with pytest.raises(MemoryError, match=f"got {both:,}"):
        step.backward()
    nbcnn.set_max_memory(both)
    step.forward(images, labels)
    step.backward()


def test_a_model_predicts_fewer_images_at_a_time_where_memory_is_short():
    images = np.random.default_rng(0).random((50, 3, 32, 32), dtype=np.float32)
    expected = network()(images)
    model = network()
    model._forward["f32"].plan((3, 32, 32))
    one, eight = (sum(model._forward["f32"]._bytes(n)) for n in (1, 8))
    nbcnn.set_max_memory(eight)
    assert (model(images) == expected).all() and 4 <= model._forward["f32"].capacity <= 8
    nbcnn.set_max_memory(one - 1)
    with pytest.raises(MemoryError, match=r"a batch of 1, got [\d,]+, [\d,]+ of them for this layer; --max-memory"):
        network()(images)


@pytest.mark.parametrize("size", [(3, 10**6, 10**6), (3, 2**31 - 1, 2**31 - 1), (2**31 - 1, 2**31 - 1, 2**31 - 1)])
def test_pictures_of_any_size_are_refused_at_once(size):
    scheduler = nbcnn.BackpropScheduler(nbcnn.Sequential([nbcnn.ReLU()]), None)
    with pytest.raises(MemoryError, match="0: expected buffers"):
        scheduler.fitting(size, 256)


def test_the_machines_memory_or_the_containers(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUPS", (str(tmp_path / "two"), str(tmp_path / "one")))
    whole = memory.machine_memory()
    if hasattr(os, "sysconf"):
        assert 2**28 < whole < 2**50
    (tmp_path / "two").write_text("max\n")
    assert memory.machine_memory() == whole
    (tmp_path / "one").write_text("9223372036854771712\n")
    assert memory.machine_memory() == whole
    (tmp_path / "two").write_text("300000000\n")
    assert memory.machine_memory() == 300_000_000 and memory.max_memory() == 150_000_000


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("1G", TypeError), (1.5, TypeError)])
def test_a_limit_that_is_none(size, error):
    with pytest.raises(error, match="size: expected an int >= 1, got"):
        nbcnn.set_max_memory(size)
