"""precision="bf16" from the scheduler to the command line. The unit is the emulated one, unless NBCNN_UNIT says another."""
import copy
import json
import os
import signal
import tracemalloc

import numba
import numpy as np
import pytest
from own_layers import Softplus, Upsample2d

import nbcnn
from nbcnn import checkpoint, cli, datasets, precision, precision_trial, predict, run_folder, train
from nbcnn.evaluate import __main__ as evaluate
from nbcnn.kernels.bfloat16 import from_bfloat16, to_bfloat16
from nbcnn.kernels.cpu import unit as units
from nbcnn.profile import bfloat16_peak

from arrays import equal
from cases import LAYERS
from checks import batch, network

UNIT = units.unit_in_use()


@pytest.fixture
def no_unit(monkeypatch):
    """A processor without a unit for bfloat16."""
    monkeypatch.setattr(precision, "unit_in_use", lambda: None)


def small(**options):
    """A network with what most have: convolutions, with pooling and without, batch norm, a sum, linear layers."""
    return nbcnn.Network([
        ("conv1", nbcnn.Conv2d(3, 8, 3, padding=1)), ("pool1", nbcnn.MaxPool2d(2)), ("conv2", nbcnn.Conv2d(8, 8, 3, padding=1)),
        ("norm2", nbcnn.BatchNorm2d(8)), ("relu2", nbcnn.ReLU()), ("add", nbcnn.Add(), ["relu2", "pool1"]),
        ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(8 * 4 * 4, 3))], input_shape=(3, 8, 8), **options)


def images_of(model, n=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *model.input_shape)).astype(np.float32), rng.integers(0, 3, n)


def dtypes(step):
    """What the values of a scheduler are stored in, by name."""
    step.plan(step.model.input_shape)
    names = {np.dtype(np.uint16): "bf16", np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
    return {value.name: names[value.dtype] for value in (step._input, *(s.output for s in step.steps))}


def trained(model, wanted, steps=3, threads=None):
    """The losses of a few steps, and all that the model has learned, as bytes."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads or before)
    try:
        images, labels = images_of(model)
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision=wanted)
        optimizer = nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = [float(step.train_step(images, labels, optimizer)) for _ in range(steps)]
    finally:
        numba.set_num_threads(before)
    return losses, b"".join(value.tobytes() for value in model.state_dict().values())


# ---- what is stored in which precision

def test_values_between_layers_are_bfloat16():
    assert dtypes(nbcnn.BackpropScheduler(small(), None, precision="bf16")) == {
        "input": "f32", "pool1": "bf16", "conv2": "bf16", "relu2": "bf16", "add": "bf16", "flatten": "bf16", "linear": "f32"}
    assert set(dtypes(nbcnn.BackpropScheduler(small(), None)).values()) == {"f32"}


def test_outputs_are_float32_from_where_products_were_summed():
    """What follows the last of them, as airbench94's factor, would only round them."""
    model = nbcnn.Sequential([
        ("conv", nbcnn.Conv2d(3, 4, 3)), ("relu", nbcnn.ReLU()), ("conv2", nbcnn.Conv2d(4, 3, 1)),
        ("average", nbcnn.GlobalAvgPool2d()), ("flatten", nbcnn.Flatten()), ("scale", nbcnn.Scale(0.1))], input_shape=(3, 6, 6))
    assert dtypes(nbcnn.BackpropScheduler(model, None, precision="bf16")) == {
        "input": "f32", "conv": "bf16", "relu": "bf16", "conv2": "f32", "average": "f32", "flatten": "f32", "scale": "f32"}


def test_a_network_without_products_is_float32():
    model = nbcnn.Sequential([("relu", nbcnn.ReLU()), ("flatten", nbcnn.Flatten())], input_shape=(3, 2, 2))
    assert set(dtypes(nbcnn.BackpropScheduler(model, None, precision="bf16")).values()) == {"f32"}


def test_what_knows_no_bfloat16_reads_and_writes_float32(monkeypatch):
    """Layers of one's own, and convolutions of groups."""
    model = nbcnn.Sequential([
        ("conv", nbcnn.Conv2d(3, 4, 3)), ("own", Softplus()), ("conv2", nbcnn.Conv2d(4, 4, 1)), ("as_it_is", nbcnn.Identity()),
        ("up", Upsample2d(2)), ("groups", nbcnn.Conv2d(4, 4, 3, groups=2)), ("same", nbcnn.Identity()), ("relu", nbcnn.ReLU()),
        ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(4 * 6 * 6, 3))], input_shape=(3, 6, 6))
    floats = "input", "conv", "own", "conv2", "as_it_is", "up", "groups", "same", "linear"
    step = nbcnn.BackpropScheduler(model, None, precision="bf16")
    assert dtypes(step) == {**dict.fromkeys(floats, "f32"), "relu": "bf16", "flatten": "bf16"}
    monkeypatch.setenv("COLUMNS", "200")
    said = [line.split()[0] for line in str(step).splitlines() if line.endswith("in float32")]
    assert said == ["own", "up", "groups"]
    exact, found = (trained(copy.deepcopy(model), name)[0] for name in ("f32", "bf16"))
    assert found == pytest.approx(exact, rel=0.02) and found != exact


def test_a_model_in_float64_stays_there():
    step = nbcnn.BackpropScheduler(small(dtype=np.float64), None, precision="bf16")
    assert step.precision == "f64" and set(dtypes(step).values()) == {"f64"}
    assert trained(small(dtype=np.float64), "bf16") == trained(small(dtype=np.float64), "f32")


def test_outputs_and_the_table():
    model = small()
    step = nbcnn.BackpropScheduler(model, None, precision="bf16")
    logits = step.predict(images_of(model)[0])
    outputs = step.outputs
    assert logits.dtype == np.float32 and {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
    for name in ("pool1", "conv2", "add"):
        assert equal(from_bfloat16(to_bfloat16(outputs[name])), np.ascontiguousarray(outputs[name]))
    text = str(step)
    assert "BFloat16Linear" in text and f"on the unit {UNIT}: values between layers are bfloat16" in text
    sizes = {line.split()[0]: line for line in text.splitlines() if line}
    assert not any(line.endswith("in float32") for line in text.splitlines())
    assert f"{8 * 4 * 4 * 2:,} " in sizes["add"] and f"{3 * 4:,} " in sizes["linear"]


# ---- results

@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_every_layer(case):
    """Loss and gradients are those of float32 but for rounding, 2^-8 of a number, a few times over."""
    found = {}
    for name in ("f32", "bf16"):
        model = network(case, np.float32)
        images, labels = batch(model, np.float32)
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision=name)
        loss = step.forward(images, labels)
        step.backward()
        found[name] = float(loss), np.concatenate([p.grad.ravel() for p in model.parameters()])
    (exact, right), (loss, gradient) = found["f32"], found["bf16"]
    assert loss == pytest.approx(exact, rel=2**-5)
    assert np.linalg.norm(gradient - right) < 2**-3 * np.linalg.norm(right) and (gradient != right).any()


def test_fused_and_unfused_predict_the_same_bits():
    """The largest of rounded numbers is the largest number, rounded."""
    model = nbcnn.Sequential([
        nbcnn.Conv2d(3, 8, 3), nbcnn.ReLU(), nbcnn.MaxPool2d(2), nbcnn.Conv2d(8, 4, 2), nbcnn.MaxPool2d(2), nbcnn.Flatten(),
        nbcnn.Linear(4, 3)], input_shape=(3, 8, 8))
    images, _ = images_of(model)
    one, other = (nbcnn.BackpropScheduler(model, None, fuse=fuse, precision="bf16").predict(images) for fuse in (True, False))
    assert equal(one, other)


def test_equal_bits_for_any_number_of_threads():
    assert trained(small(), "bf16", threads=1) == trained(small(), "bf16", threads=numba.config.NUMBA_NUM_THREADS)


def test_an_images_outputs_depend_on_nothing_else():
    model = small()
    images, _ = images_of(model, 40)
    whole = model.predict(images, precision="bf16")
    for size in (1, 7, 33):
        assert equal(model.predict(images, size, precision="bf16"), whole)
    assert not equal(model.predict(images), whole)


def wide():
    """Where float32 meets bfloat16: images of many channels, a convolution of groups in the midst."""
    return nbcnn.Sequential([
        nbcnn.Conv2d(32, 32, 3), nbcnn.ReLU(), nbcnn.Conv2d(32, 32, 3, groups=32), nbcnn.Conv2d(32, 64, 1), nbcnn.MaxPool2d(2),
        nbcnn.Flatten(), nbcnn.Linear(64 * 6 * 6, 10)], input_shape=(32, 16, 16))


@pytest.mark.parametrize("make", [nbcnn.models.cifar10_quick, wide], ids=lambda make: make.__name__)
@pytest.mark.parametrize("backward", [False, True])
def test_memory_is_foretold(make, backward):
    """What a pass allocates, within 5 %: lists of calls, packed weights and other small arrays are not counted."""
    model = make()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision="bf16")
    step.plan(model.input_shape)
    images, labels = np.zeros((64, *model.input_shape), np.float32), np.zeros(64, np.int64)
    step.forward(images[:1], labels[:1])        # compiles, and allocates what does not depend on the batch
    if backward:
        step.backward()
    before = sum(step._bytes(1, backward))
    tracemalloc.start()
    try:
        step.forward(images, labels)
        if backward:
            step.backward()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sum(step._bytes(64, backward)) == pytest.approx(taken, rel=0.05) and before < taken


def test_a_step_whose_loss_is_not_finite_changes_nothing():
    model = small()
    before = copy.deepcopy(model).state_dict()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision="bf16")
    images, labels = images_of(model)
    images[1, 0, 0, 0] = np.nan
    assert np.isnan(step.train_step(images, labels, nbcnn.SGD(model.parameters(), lr=0.1)))
    assert all(equal(value, before[name]) for name, value in model.state_dict().items())
    assert step.first_nonfinite() == "input"
    images[1, 0, 0, 0] = 1e38       # finite, and more than a float32 can hold once it is multiplied
    model.conv1.weight.set(np.full((8, 3, 3, 3), 100, np.float32))
    assert not np.isfinite(step.forward(images, labels)) and step.first_nonfinite() == "conv1+pool1"


def test_frozen_layers_and_the_gradient_of_the_images():
    model = small(frozen=["conv1.weight", "conv2.bias"])
    images, labels = images_of(model)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), need_dx=True, precision="bf16")
    step.forward(images, labels)
    step.backward()
    assert step.dx.dtype == np.float32 and step.dx.shape == images.shape and step.dx.any()
    exact = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), need_dx=True)
    exact.forward(images, labels)
    exact.backward()
    assert np.linalg.norm(step.dx - exact.dx) < 2**-3 * np.linalg.norm(exact.dx)


def test_profile_has_the_units_peak():
    model = small()
    images, labels = images_of(model)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision="bf16")
    optimizer = nbcnn.SGD(model.parameters(), lr=0)
    step.train_step(images, labels, optimizer)
    with step.profile() as profile:
        step.train_step(images, labels, optimizer)
    assert profile.peak > 0 and " GFLOP/s in bf16. " in str(profile)
    shares = [row["peak_share"] for row in profile.rows if row["kernel"] == "conv2d_forward"]
    assert len(shares) == 2 and all(share > 0 for share in shares)
    assert 0 < bfloat16_peak(1) < np.inf
    with pytest.raises(ValueError, match=r"^threads: expected at most"):
        bfloat16_peak(10**6)


# ---- fit, predict, evaluate

def lamps():
    """Dark and bright images."""
    labels = np.arange(64) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (64, 3, 8, 8)) + 150 * labels[:, None, None, None]
    return datasets.Dataset(pixels.astype(np.uint8), labels, ["dark", "bright", "off"], "shapes")


def test_fit_evaluate_and_find_lr():
    model, lamp = small(), lamps()
    found = nbcnn.fit(model, lamp, lamp, epochs=4, batch_size=16, augment=False, verbose=0, precision="bf16")
    assert found.history[-1]["test_accuracy"] == 1
    exact, rounded = model.evaluate(lamp), nbcnn.evaluate(model, lamp, precision="bf16")
    assert rounded.loss == pytest.approx(exact.loss, rel=0.1, abs=1e-3) and rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(found.history[-1]["test_loss"])
    assert 0 < nbcnn.find_lr(small(), lamp, batch_size=16, augment=False, precision="bf16", steps=10).lr


@pytest.mark.parametrize("call", [
    lambda model, wanted: nbcnn.BackpropScheduler(model, None, precision=wanted),
    lambda model, wanted: model.predict(np.zeros((1, 3, 8, 8), np.float32), precision=wanted),
    lambda model, wanted: model.evaluate(lamps(), precision=wanted),
    lambda model, wanted: nbcnn.fit(model, lamps(), verbose=0, precision=wanted)])
def test_bad_precisions(call, monkeypatch):
    with pytest.raises(ValueError, match=r"^precision: expected one of 'f32', 'bf16', got 'bf32'"):
        call(small(), "bf32")
    for wrong in (16, None, ["bf16"]):
        with pytest.raises((TypeError, ValueError), match=r"^precision: expected one of 'f32', 'bf16', got "):
            call(small(), wrong)
    monkeypatch.setattr(nbcnn.Network, "device", property(lambda self: "cuda"))
    with pytest.raises(ValueError, match=r"^precision: expected 'f32', got 'bf16': the model is on cuda, and bf16 is for CPUs$"):
        call(small(), "bf16")
    monkeypatch.undo()
    monkeypatch.setattr(precision, "unit_in_use", lambda: None)
    with pytest.raises(ValueError, match=r"^precision: expected 'f32', got 'bf16': this processor has no unit for bf16, neither "
                                         r"AMX nor AVX512-BF16$"):
        call(small(), "bf16")


def test_the_faster_one_is_chosen(monkeypatch):
    """By steps on a copy: neither values nor counters of the model change."""
    made, model, loss = nbcnn.BackpropScheduler.train_step, small(), nbcnn.CrossEntropyLoss()
    before, clock, now = copy.deepcopy(model).state_dict(), {"f32": 1.0, "bf16": 2.0}, [0.0]

    def timed(self, *arguments, **options):
        result = made(self, *arguments, **options)
        now[0] += clock[self.precision]
        return result
    monkeypatch.setattr(nbcnn.BackpropScheduler, "train_step", timed)
    monkeypatch.setattr(precision_trial.time, "perf_counter", lambda: now[0])
    why = "a step took 2e+03 ms with bf16 and 1e+03 ms with f32"
    assert precision_trial.choose_precision(model, 4, loss) == ("f32", why)
    clock["bf16"] = 0.5
    assert precision_trial.choose_precision(model, 4, loss)[0] == "bf16"
    assert precision_trial.choose_precision(model, 4, nbcnn.MSELoss())[0] == "bf16"
    assert all(equal(value, before[name]) for name, value in model.state_dict().items()) and model.vector.steps[0] == 0


def test_what_leaves_no_choice(monkeypatch):
    assert precision_trial.choose_precision(small(dtype=np.float64), 4) == ("f32", "the model's numbers are float64")
    monkeypatch.setattr(precision, "unit_in_use", lambda: None)
    why = "this processor has no unit for bf16, neither AMX nor AVX512-BF16"
    assert precision_trial.choose_precision(small(), 4) == ("f32", why)


def test_where_memory_is_short_there_is_no_choice():
    """bfloat16 takes memory for 32 images at least."""
    model, images = wide(), np.zeros((1, 32, 16, 16), np.float32)
    step = nbcnn.BackpropScheduler(model, None)
    step.plan(model.input_shape)
    nbcnn.set_max_memory(sum(step._bytes(1)) + 1000)
    try:
        assert precision_trial.choose_precision(model, 1) == ("f32", "there is not enough memory to try both")
        assert model.predict(images).shape == (1, 10)
    finally:
        nbcnn.set_max_memory(None)


def test_a_unit_that_is_not_there_is_refused(monkeypatch):
    """Whatever is asked for."""
    def wrong():
        raise ValueError("NBCNN_UNIT: expected another")
    monkeypatch.setattr(precision, "unit_in_use", wrong)
    with pytest.raises(ValueError, match=r"^NBCNN_UNIT: expected another"):
        precision_trial.choose_precision(small(), 1)
    with pytest.raises(ValueError, match=r"^NBCNN_UNIT: expected another"):
        nbcnn.BackpropScheduler(small(), None, precision="bf16")


# ---- the command line

@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of the test's own, with a network in a file; 64 dark and bright images instead of the built-in ones."""
    (tmp_path / "net.py").write_text(
        "import nbcnn\n\n\ndef make():\n    return nbcnn.Sequential([nbcnn.Conv2d(3, 8, 3), nbcnn.BatchNorm2d(8), nbcnn.ReLU(), "
        "nbcnn.MaxPool2d(2),\n                             nbcnn.Flatten(), nbcnn.Linear(72, 3)], input_shape=(3, 8, 8))\n")
    monkeypatch.setattr(datasets.choice, "shapes", lambda: (lamps(), lamps()))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return train.main(["--dataset", "shapes", "--model", "net.py:make", "--batch-size", "16", "--epochs", "2", "--out",
                       *map(str, arguments)])


def test_train_predict_and_evaluate(folder, capsys):
    assert run("run", "--precision", "bf16") == 0
    assert f"numbers  bf16 on the unit {UNIT}\n" in capsys.readouterr().out
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["options"]["precision"] == config["precision"] == "bf16" and config["unit"] == UNIT
    assert evaluate.main(["--checkpoint", "run", "--precision", "bf16", "--json"]) == 0
    rounded = json.loads(capsys.readouterr().out)
    assert evaluate.main(["--checkpoint", "run", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert rounded["loss"] != exact["loss"] == pytest.approx(rounded["loss"], rel=0.1, abs=1e-3)
    from PIL import Image
    Image.fromarray(lamps().images[1].transpose(1, 2, 0)).save("lamp.png")
    for more in ([], ["--precision", "bf16"], ["--precision", "auto"]):
        assert predict.main(["lamp.png", "--checkpoint", "run", *more]) == 0
        assert capsys.readouterr().out.startswith("lamp.png\tbright 0.9")


def test_resume_ends_with_the_same_bits(folder, monkeypatch):
    """At any batch, with the precision that the run began with; auto contradicts nothing, as it was decided then."""
    assert run("whole", "--precision", "bf16", "--quiet") == 0
    made, count = nbcnn.fit, [0]

    def stopped(*arguments, on_step=None, **options):
        def step(state):
            count[0] += 1
            if count[0] == 3:
                signal.raise_signal(signal.SIGINT)
            on_step(state)
        return made(*arguments, on_step=step if on_step else None, **options)
    monkeypatch.setattr(train, "fit", stopped)
    assert run("part", "--precision", "bf16", "--quiet") == 130
    monkeypatch.setattr(train, "fit", made)
    assert train.main(["--resume", "part", "--precision", "auto", "--quiet"]) == 0
    for name in ("last", "best"):
        assert (folder / "part" / f"{name}.safetensors").read_bytes() == (folder / "whole" / f"{name}.safetensors").read_bytes()
    assert run("floats", "--quiet") == 0
    assert (folder / "floats" / "last.safetensors").read_bytes() != (folder / "whole" / "last.safetensors").read_bytes()
    assert checkpoint.load("whole/last.safetensors").options["precision"] == "bf16"


def test_float32_asks_for_no_unit(folder, monkeypatch):
    monkeypatch.setenv("NBCNN_UNIT", "none of them")
    monkeypatch.setattr(train, "unit_in_use", lambda: 1 / 0)
    assert run("run", "--quiet") == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["precision"] == "f32" and config["unit"] is None


def test_resume_on_another_unit(folder, capsys):
    """It is said, as the last digits are others then."""
    assert run("run", "--precision", "bf16", "--quiet") == 0
    path = folder / "run" / "config.json"
    for unit, said in (("another", "unit     another until now, whose last digits are others\n"), (UNIT, ""), (None, "")):
        path.write_text(json.dumps({"unit": unit}))
        capsys.readouterr()
        assert train.main(["--resume", "run"]) == 0
        out = capsys.readouterr().out
        assert said in out and ("unit     " in out) == bool(said)
    for text in ("[", "[]", "[" * 10**5, '{"unit": {}}'):
        path.write_text(text)
        assert train.main(["--resume", "run"]) == 0
    path.unlink()
    os.mkfifo(path)         # which nobody writes to
    assert run_folder.read_config(folder / "run") == {}


def test_auto_says_what_it_does_before_it_does_it(folder, monkeypatch, capsys):
    """Compiling for both takes half a minute."""
    def choose(*_):
        out = capsys.readouterr().out
        assert out.startswith("data     ") and out.splitlines()[-1].startswith("numbers  auto: compiling and measuring ")
        return "f32", "so it is"
    monkeypatch.setattr(cli, "choose_precision", choose)
    assert run("run", "--precision", "auto") == 0
    out = capsys.readouterr().out
    assert out.startswith("numbers  f32: so it is\n") and "data  " not in out


def test_a_run_in_float64(folder, capsys):
    text = (folder / "net.py").read_text()
    (folder / "net.py").write_text(text.replace("input_shape", "dtype='float64', input_shape"))
    assert run("run", "--precision", "bf16") == 0
    assert "numbers  f64: the model's numbers are float64\n" in capsys.readouterr().out
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["precision"] == "f64" and config["unit"] is None
    for more in ([], ["--precision", "bf16"]):
        assert train.main(["--resume", "run", *more]) == 0


def test_resume_refuses_another_precision(folder, capsys):
    assert run("run", "--precision", "bf16", "--quiet") == 0
    capsys.readouterr()
    assert train.main(["--resume", "run", "--precision", "f32"]) == 2
    assert capsys.readouterr().err == ("nbcnn train: --precision f32 contradicts run/last.safetensors, trained with bf16; leave it "
                                       "out\n")


def test_where_there_is_no_unit(folder, no_unit, capsys):
    reason = "this processor has no unit for bf16, neither AMX nor AVX512-BF16"
    assert run("run", "--precision", "bf16") == 2
    out, error = capsys.readouterr()
    assert error == f"nbcnn train: --precision bf16: {reason}; f32 runs everywhere, and auto takes it here\n"
    assert out == "" and not (folder / "run").exists()
    assert run("run", "--precision", "auto") == 0
    assert f"numbers  f32: {reason}\n" in capsys.readouterr().out
    assert json.loads((folder / "run" / "config.json").read_text())["options"]["precision"] == "f32"
    for main in (evaluate.main, lambda rest: predict.main(["lamp.png", *rest])):
        assert main(["--checkpoint", "run", "--precision", "bf16"]) == 2
        assert f"--precision bf16: {reason}" in capsys.readouterr().err
    assert run("other", "--precision", "f16") == 2
    assert "invalid choice: 'f16'" in capsys.readouterr().err


def test_resume_where_there_is_no_unit(folder, monkeypatch, capsys):
    """The weights are not lost: the message says how to go on with them."""
    assert run("run", "--precision", "bf16", "--quiet") == 0
    monkeypatch.setattr(precision, "unit_in_use", lambda: None)
    capsys.readouterr()
    assert train.main(["--resume", "run"]) == 2
    assert capsys.readouterr().err == (
        "nbcnn train: --resume: run/last.safetensors was trained with bf16, and this processor has no unit for bf16, neither AMX "
        "nor AVX512-BF16; a new run may begin with its weights: --init-from run/last.safetensors\n")
    assert train.main(["--init-from", "run/last.safetensors", "--epochs", "1", "--out", "more", "--quiet"]) == 0
    assert checkpoint.load("more/last.safetensors").options["precision"] == "f32"
