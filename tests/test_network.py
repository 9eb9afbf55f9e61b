"""Networks whose layers read what any layer before them gives: their errors, their plans, and layers that join values or draw."""
import copy
import re

import numpy as np
import pytest

import nbcnn
from nbcnn import Add, Concat, Conv2d, Dropout, Dropout2d, Flatten, Identity, Linear, ReLU, Scale

import oracles
from arrays import equal

SHAPE = 2, 6, 5


def joined(**options):
    """The images and two values have several readers; a layer reads one of them twice, others three; two paths compute nothing."""
    return nbcnn.Network([
        ("conv1", Conv2d(2, 3, 3, padding=1)), ("relu1", ReLU()),
        ("conv2", Conv2d(2, 3, 3, padding=1), ["input"]),
        ("twice", Add(), ["relu1", "relu1"]),
        ("shortcut", Identity(), ["relu1"]), ("other", Identity(), ["conv2"]),
        ("sum", Add(), ["twice", "shortcut", "other"]), ("scale", Scale(0.5)),
        ("concat", Concat(), ["scale", "input", "other"]), ("drop", Dropout(0.25)),
        ("same", Concat(), ["drop", "drop", "drop"]),
        ("flatten", Flatten()), ("linear", Linear(24 * 6 * 5, 4)),
    ], **{"input_shape": SHAPE, "seed": 5} | options)


def batch(n=5, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, *SHAPE)).astype(dtype), rng.integers(0, 4, n)


# ---- errors

def chain(*entries, kind=nbcnn.Network):
    return kind([("conv1", Conv2d(2, 3, 3)), ("relu1", ReLU()), *entries, ("flatten", Flatten())], input_shape=SHAPE)


@pytest.mark.parametrize("make, error, message", [
    (lambda: chain(("add1", Add(), ["relu1", "conv"])), ValueError,
     "layers: add1: expected inputs that come before it in the list, input, conv1, relu1, got 'conv'; did you mean conv1?"),
    (lambda: chain(("add1", Add(), ["relu1", "flatten"])), ValueError,
     "layers: add1: expected inputs that come before it in the list, input, conv1, relu1, got 'flatten'"),
    (lambda: chain(("add1", Add(), ["relu1", "add1"])), ValueError,
     "layers: add1: expected inputs that come before it in the list, input, conv1, relu1, got 'add1'"),
    (lambda: chain(("relu2", ReLU(), ["relu1", "conv1"])), ValueError,
     "layers: relu2: expected 1 input for ReLU(), got relu1, conv1"),
    (lambda: chain(("relu2", ReLU(), [])), ValueError,
     """layers: relu2: expected 1 input for ReLU(), got none; write ("relu2", ReLU(), ["relu1", ...])"""),
    (lambda: chain(("add1", Add())), ValueError,
     """layers: add1: expected two or more inputs for Add(), got relu1; write ("add1", Add(), ["relu1", ...])"""),
    (lambda: chain(("concat1", Concat(), ["conv1"])), ValueError,
     """layers: concat1: expected two or more inputs for Concat(), got conv1; write ("concat1", Concat(), ["relu1", ...])"""),
    (lambda: chain(("add1", Add(), "relu1")), TypeError, "layers: add1: expected a list of names as its inputs, got 'relu1'"),
    (lambda: chain(("add1", Add(), ["relu1", 0])), TypeError,
     "layers: add1: expected a list of names as its inputs, got ['relu1', 0]"),
    (lambda: chain(("add1", Add(), ["relu1", "input"])), ValueError,
     "add1 of relu1 and input: expected inputs of the same shape, got (N, 3, 4, 3) and (N, 2, 6, 5)"),
    (lambda: chain(("concat1", Concat(), ["relu1", "conv1", "input"])), ValueError,
     "concat1 of relu1 and conv1 and input: expected inputs of the same shape but for the channels, got (N, 3, 4, 3) and (N, 2, "),
    (lambda: chain(("relu2", ReLU(), ["conv1"]), ("relu3", ReLU(), ["relu1"])), ValueError,
     "layers: expected somebody to read what relu2 gives, got none; the last entry is the output"),
    (lambda: chain(("input", ReLU()), ("relu2", ReLU(), ["input"])), ValueError,
     "layers: expected no layer called input, which stands for the images"),
    (lambda: chain(("add1", Add(), ["relu1", "conv1"]), kind=nbcnn.Sequential), ValueError,
     "layers: add1: expected no inputs in a Sequential, whose layers follow one another, got ['relu1', 'conv1']; write "
     "nbcnn.Network([...])"),
    (lambda: chain(("add1", Add()), kind=nbcnn.Sequential), ValueError,
     "layers: add1: expected two or more inputs for Add(), got relu1"),
    (lambda: chain(("flatten", Flatten(), ["relu1"])), ValueError, "layers: the name 'flatten' is taken"),
    (lambda: chain(("drop", Dropout2d()), ("vectors", Flatten()), ("drop2", Dropout2d())), ValueError,
     "drop2: expected images (N, C, H, W), got (N, 36)"),
    (lambda: Dropout(1.5), ValueError, "p: expected a number in [0, 1], got 1.5"),
    (lambda: Dropout2d(None), TypeError, "p: expected a number in [0, 1], got None"),
    (lambda: Scale(np.inf), ValueError, "factor: expected a finite number of float32, got inf"),
    (lambda: Scale("2"), TypeError, "factor: expected a finite number of float32, got '2'"),
])
def test_errors(make, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()


def test_layers_show_their_arguments():
    layers = Dropout(), Dropout(0.25), Dropout2d(1), Scale(1 / 8), Identity(), Concat(), Add()
    assert list(map(repr, layers)) == ["Dropout()", "Dropout(p=0.25)", "Dropout2d(p=1.0)", "Scale(factor=0.125)", "Identity()",
                                       "Concat()", "Add()"]


# ---- what a network is

def test_structure(tmp_path):
    """It comes back from a copy, and from a file, with the same inputs and outputs."""
    model, (images, _) = joined(), batch()
    model.save(tmp_path / "file")
    for other in (copy.deepcopy(model), nbcnn.load(tmp_path / "file")):
        assert type(other) is nbcnn.Network and other.inputs == model.inputs and other.structure() == model.structure()
        assert equal(other(images), model(images))
    assert model.inputs["sum"] == ("twice", "shortcut", "other") and model.inputs["relu1"] == ("conv1",)
    assert "(twice): Add() of relu1, relu1\n" in repr(model) and "(relu1): ReLU()\n" in repr(model)


def test_plan_shows_the_readers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = str(nbcnn.BackpropScheduler(joined(), None)).splitlines()
    assert lines[0].split()[:5] == ["step", "kernel", "input", "output", "read"]
    assert "twice, shortcut" in lines[3] and "sum, concat" in next(line for line in lines if line.startswith("other"))


@pytest.mark.parametrize("fuse", [True, False])
def test_gradients(fuse):
    check = nbcnn.check_gradients(joined(dtype=np.float64), SHAPE, fuse=fuse)
    assert check, check


def test_a_sum_hands_its_gradient_on():
    """It is that of the inputs: where only the sum reads them, backward computes nothing."""
    model = nbcnn.Network([("conv1", Conv2d(2, 3, 3)), ("conv2", Conv2d(2, 3, 3), ["input"]), ("sum", Add(), ["conv1", "conv2"]),
                           ("flatten", Flatten()), ("linear", Linear(36, 4))], input_shape=SHAPE)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    step.plan(SHAPE)
    step.reserve(5, backward=True)
    assert "sum" not in [name for name, _ in step.backward_calls(5)]


def test_evaluation_leaves_out_what_is_dropped():
    """And uses memory again: the same numbers as of a plan that keeps everything."""
    model, (images, labels) = joined(), batch()
    structure = [[name, "Identity", {}, None, inputs] if kind == "Dropout" else [name, kind, arguments, None, inputs]
                 for name, kind, arguments, _, inputs in model.structure()]
    without = nbcnn.Network.from_structure(structure, model.state_dict())
    step = nbcnn.BackpropScheduler(without, nbcnn.CrossEntropyLoss(), fuse=False)
    step.forward(images, labels)
    assert equal(model(images), step.predict(images)) and not equal(step.predict(images), joined(seed=1)(images))


# ---- dropout in training

def dropping(p=0.5, **options):
    model = nbcnn.Sequential([("drop1", Dropout(p)), ("drop2", Dropout2d(p)), ("flatten", Flatten()), ("linear", Linear(60, 4))],
                             input_shape=SHAPE, **options)
    return model, nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), need_dx=True)


@pytest.mark.parametrize("seed", [0, 2**63 + 5])
def test_each_step_and_layer_draws_its_own(seed):
    """Forward and backward of a step drop the same; the next step drops others, an evaluation between them or not."""
    model, step = dropping(seed=seed, dtype=np.float64)
    images, labels = batch(dtype=np.float64)
    for steps in range(3):
        step.forward(images, labels)
        step.backward()
        elements, planes = (oracles.dropout_mask(5, cells, 0.5, model.seed, layer, steps)
                            for layer, cells in enumerate((SHAPE, SHAPE[:1])))
        stays = elements * planes[:, :, None, None] == 1
        assert equal(step.dx != 0, stays) and stays.any() and model.vector.steps[0] == steps + 1
        y = step.outputs["drop2"]
        assert equal(y != 0, stays) and equal(y[stays], 4 * images[stays])
        step.forward(images, labels, training=False)
        model(images)


def test_a_step_is_drawn_again_from_its_number():
    """What a run that is gone on with needs is the number of steps, and in one step any batch begins with the same mask."""
    (images, labels), losses = batch(), []
    for start in (0, 2):
        model, step = dropping()
        model.vector.steps[0] = start
        losses.append([float(step.forward(images, labels)) for _ in range(start, 4)])
    assert losses[0][2:] == losses[1] and len(set(losses[0])) == 4
    model, step = dropping()
    assert equal(step.predict(images, training=True)[:3], step.predict(images[:3], training=True)) and model.vector.steps[0] == 0


def test_a_loss_that_is_not_finite_is_no_step():
    model, step = dropping()
    images, labels = batch()
    optimizer = nbcnn.SGD(model.parameters(), lr=0.1)
    before = step.train_step(images, labels, optimizer)
    assert model.vector.steps[0] == 1
    images[0, 0, 0, 0] = np.nan
    assert np.isnan(step.train_step(images, labels, optimizer)) and model.vector.steps[0] == 1 and np.isfinite(before)


def test_nothing_and_all_are_dropped():
    images, labels = batch()
    for p in (0, 1):
        model, step = dropping(p)
        step.forward(images, labels)
        step.backward()
        whole = model(images) if p == 0 else np.broadcast_to(model.linear.bias.data, (5, 4))
        assert equal(step.predict(images, training=True), np.ascontiguousarray(whole))
        assert step.dx.any() == (p == 0)
