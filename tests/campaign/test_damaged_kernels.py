"""Compiled kernels whose files are damaged, missing, in the way or half-written: every run gives the same bits and ends well."""
import os
import random
import resource
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

import nbcnn

# One kernel, which compiles soon; two training steps; `nbcnn predict` of an image.
RELU = """
import nbcnn.kernels, numpy as np
print(nbcnn.kernels.relu_forward(np.random.default_rng(0).standard_normal((2, 3, 4, 5), dtype=np.float32)).tobytes().hex())
"""
STEPS = """
import nbcnn, numpy as np
layers = [("conv1", nbcnn.Conv2d(3, 8, 3, padding=1)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
          ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(128, 3))]
model, rng = nbcnn.Sequential(layers, seed=0), np.random.default_rng(0)
step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    step.train_step(rng.random((4, 3, 8, 8), dtype=np.float32), rng.integers(0, 3, 4), optimizer)
print(b"".join(p.data.tobytes() for p in model.parameters()).hex())
"""
PREDICT = ["-m", "nbcnn", "predict", "image.png", "--checkpoint", "tiny.safetensors"]
QUIET = ["empty", "half", "zeros", "garbage", "1 bit", "1 bit", "1 bit", "16 bits", "unreadable", "missing", "another's", "killed"]
WARNED = ["folder", "full disk"]        # what a run cannot mend: one line says so


def start(code, cache, **options):
    return subprocess.Popen([sys.executable, *code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": "1"}, **options)


def run(code, cache, full_disk=False):
    """The exit status and both outputs of a process."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))) if full_disk else None
    process = start(code, cache, preexec_fn=limit)
    output, error = process.communicate(timeout=300)
    return process.returncode, output, error


def damage(file, kind, others, rng):
    """Do something to a file, which is not among the others."""
    data = bytearray(file.read_bytes())
    if kind == "another's":
        shutil.copy(rng.choice(others), file)
    elif kind == "unreadable":
        file.chmod(0)
    elif kind in ("missing", "killed", "full disk", "folder"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
    else:
        if kind.endswith(("bit", "bits")):
            for _ in range(int(kind.split()[0])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "zeros":
            data[len(data) // 2:] = bytes(len(data) - len(data) // 2)
        file.write_bytes({"empty": b"", "half": data[:len(data) // 2], "garbage": rng.randbytes(len(data))}.get(kind, data))


@pytest.fixture
def images(monkeypatch, tmp_path):
    """A folder with what `nbcnn predict` takes."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("image.png")
    layers = [("conv1", nbcnn.Conv2d(3, 8, 3)), ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(288, 3))]
    nbcnn.Sequential(layers, seed=0, classes=["a", "b", "c"], input_shape=(3, 8, 8)).save("tiny.safetensors")


def test_damaged_files_of_compiled_kernels(full, seed, images, tmp_path):
    programs, kinds, rng = [["-c", RELU]], ["half", "full disk"], random.Random(seed)
    if full:
        programs, kinds = [["-c", STEPS], PREDICT], QUIET * 16 + WARNED * 4
    for program in programs:
        good, now = tmp_path / "good", tmp_path / "now"
        shutil.rmtree(good, ignore_errors=True)
        first = run(program, good)
        assert first[0] == 0 and run(program, good) == first, first
        names = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
        assert names
        for kind in rng.sample(kinds, len(kinds) // len(programs)):
            shutil.rmtree(now, ignore_errors=True)
            shutil.copytree(good, now)
            chosen = names if kind in WARNED else [rng.choice(names)]       # not each is asked for in every run
            what = f"{kind} {chosen[0].name}"
            for name in chosen:
                damage(now / name, kind, [now / other for other in names if other != name], rng)
            if kind == "killed":
                process = start(program, now)
                time.sleep(rng.uniform(0.2, 3))
                process.kill()
                process.communicate()
            status, output, error = run(program, now, kind == "full disk")
            assert (status, output) == first[:2], (what, error)
            lines = [line for line in error.splitlines() if line[:2] != "  "]       # below a warning stands its line of code
            assert ["compiled kernels cannot be kept" in line for line in lines] == [True] * (kind in WARNED), (what, error)
            if kind not in WARNED:
                assert run(program, now) == first, what
