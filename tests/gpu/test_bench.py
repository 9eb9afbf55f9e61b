"""bench/gpu.py: it sees what is wrong, one part that fails does not lose the others, and the files say so."""
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import nbcnn
from nbcnn import kernels

pytestmark = pytest.mark.gpu
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    if not BENCH.exists():
        pytest.skip("the benches are not there")
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def report(bench, tmp_path):
    return bench.Report(tmp_path / "gpu.json", tmp_path / "gpu.md", 5)


def test_right_kernels_pass(bench, report, sizes, cuda):
    bench.kernels_right(report, bench.tiny, 2, cuda)
    assert {row["integers"] for row in report.data["correctness"]} == {"equal", ""}


@pytest.mark.parametrize("name, fault", [
    ("linear_backward", lambda dx, dw, db: (dx, dw, dw[:, 0].copy())),     # db is wrong
    ("conv2d_maxpool2d_backward", lambda dx, dw, db: (dx[:, :, ::-1].copy(), dw, db)),
])
def test_a_wrong_kernel_fails(bench, report, cuda, monkeypatch, name, fault):
    right = getattr(kernels, name)

    def wrong(*arguments, **options):
        results = right(*arguments, **options)
        if isinstance(arguments[0], np.ndarray):
            return results
        return tuple(map(cuda.to_device, fault(*map(cuda.to_host, results))))

    monkeypatch.setattr(kernels, name, wrong)
    with pytest.raises(AssertionError, match=r"wrong results: .*backward"):
        bench.kernels_right(report, bench.tiny, 2, cuda)
    assert "DIFFERENT" in "\n".join(report.parts)


def test_steps_and_bits(bench, report):
    bench.steps_right(report, bench.tiny, 2)
    assert bench.check_bits(bench.tiny, 2, 2) == (True, True)


def test_another_learning_rate_is_seen(bench, report, monkeypatch):
    step = nbcnn.BackpropScheduler.train_step

    def slower(self, images, targets, optimizer):       # what the CPU's steps call
        optimizer.lr = 0.049
        return step(self, images, targets, optimizer)

    monkeypatch.setattr(nbcnn.BackpropScheduler, "train_step", slower)
    with pytest.raises(AssertionError, match="wrong training steps"):
        bench.steps_right(report, bench.tiny, 2)


def test_an_error_ends_its_section_only(report):
    with report.section("first"):
        raise ValueError("no such thing")
    with report.section("second"):
        report.table("numbers", ["a", "b"], [[1, 2]])
    data = json.loads(report.files[0].read_text())
    assert not data["passed"] and data["errors"] == {"first": "ValueError: no such thing"}
    text = report.files[1].read_text()
    assert "FAILED: first: ValueError: no such thing" in text and "## numbers\n\n| a | b |\n| --- | --- |\n| 1 | 2 |" in text


def test_ratios_are_to_the_graphs_and_leave_tf32_out(bench, report):
    class Side:
        def __init__(self, seconds, loss=2.3):
            self.run, self.loss = lambda: seconds, lambda: loss

    mine = {"nbcnn eager": Side(4e-4), "nbcnn graph": Side(1e-4)}
    theirs = {"eager": Side(5e-4), "graph": Side(2e-4), "graph, TF32": Side(0.5e-4)}
    bench.compare(report, "Steps", mine, theirs, 64, 3)
    assert report.data["ratios"][0]["best of PyTorch's / nbcnn's"] == "2.00 (2.00-2.00)"
    assert "| nbcnn graph | 100.0 (100.0-100.0) | 640,000 |" in report.parts[-1]
    with pytest.raises(AssertionError, match="not finite: PyTorch graph"):
        bench.compare(report, "Steps", mine, {"graph": Side(2e-4, np.nan)}, 64, 3)


def test_bytes_of_the_networks_calls(bench, cuda):
    """Counted by hand for two calls of a step of 64 pictures: nothing is run."""
    make = nbcnn.models.cifar10_quick
    steps = bench.training(make, bench.random_pictures((3, 32, 32), 128), 64, "cuda")
    steps.scheduler.reserve(64, backward=True)
    found = {(name, call.kernel.__name__): bench.touched(steps, name, call, 64) for name, call in steps.calls(64)}
    pictures, pooled = 64 * 3 * 32 * 32, 64 * 32 * 16 * 16
    # Pictures, weights, bias; results of four bytes and winners of one.
    assert found["conv1+maxpool1", "correlate"] == 4 * (pictures + 2400 + 32) + 5 * pooled
    # dx and dy, x, w once each; dw and db.
    assert found["linear2", "linear_backward"] == 4 * (64 * 64 + 64 * 10 + 64 * 64 + 640 + 640 + 10)
