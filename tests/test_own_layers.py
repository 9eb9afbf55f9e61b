"""Layers from a file outside the package: they train, pass what nbcnn's layers pass, and come back from a checkpoint."""
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import own_layers
import pytest
import test_activations
from own_layers import Softplus, Upsample2d
from safetensors.numpy import load_file, save_file

import nbcnn
from nbcnn import checkpoint, predict, train
from nbcnn.evaluate import __main__ as evaluate
from nbcnn.kernels.operation import Call, Operation

import activations

FILE = Path(own_layers.__file__)


def softplus(x, dy, beta):
    """y and dx."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.logaddexp(0, beta * x) / beta, dy / (1 + np.exp(-beta * x))


@pytest.mark.parametrize("test", [
    test_activations.test_gradient_is_the_difference_quotient, test_activations.test_any_number_of_threads_gives_equal_bits,
    *(lambda case, test=test, dtype=dtype: test(case, dtype) for dtype in (np.float32, np.float64)
      for test in (test_activations.test_equals_oracle, test_activations.test_strided_and_read_only_inputs,
                   test_activations.test_operation_writes_its_outputs_and_nothing_else)),
    *(lambda case, dtype=dtype: test_activations.test_known_values(case, dtype) for dtype in (np.float32, np.float64)),
    test_activations.test_gradients_of_a_network])
def test_the_tests_of_activations(test):
    test(activations.Case(Softplus, softplus, ((0, 0.69314718056, 0.5), (1, 1.31326168752, 0.73105857863)), (1.0,)))


def test_upsampling():
    x = np.random.default_rng(0).integers(-9, 9, (2, 3, 4, 5)).astype(np.float32)
    model = nbcnn.Sequential([Upsample2d(3)])
    assert (model(x) == x.repeat(3, 2).repeat(3, 3)).all()
    assert "Upsample2d(3)" in model.summary()


class Shift(nbcnn.Layer):
    """y = x + beta + seen, a parameter and a statistic with names of their own."""

    def __init__(self, channels):
        self.arguments = {"channels": channels}
        self.beta, self.seen = nbcnn.Parameter((channels,), nbcnn.init.constant(2)), nbcnn.Statistic((channels,), 0.5)
        self.count = nbcnn.Statistic((), 7, np.int64)

    def output_shape(self, shape):
        return shape

    def operation(self, backend, shape, dtype):
        return ShiftOperation(self)


class ShiftOperation(Operation):
    """Its kernels are Python functions, which do as well here."""
    stateful = True

    def __init__(self, layer):
        self.layer = layer

    def forward(self, n, y, x, params):
        def kernel():
            y.array[:n * y.step] = x.array[:n * y.step] + np.tile(params[0] + self.layer.seen.flat, n)
        return [Call(kernel, ())]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        def kernel():
            total = dy.view(n).sum(0)
            dparams[0][...] = total + dparams[0] if add[0] else total
        return [Call(kernel, ())]

    def commit(self, n):
        def kernel():
            self.layer.seen.flat[...] += 1
            self.layer.count.flat[...] += 1
        return [Call(kernel, ())]


def test_parameters_and_statistics_of_any_name(tmp_path):
    """They are learned, kept, counted, saved and loaded; a step whose loss is not finite changes neither."""
    model = nbcnn.Sequential([("shift", Shift(3))])
    assert list(model.state_dict()) == ["shift.beta", "shift.seen", "shift.count"]
    assert model.state_dict()["shift.count"].dtype == np.int64 and model.shift.count.numpy() == 7
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.MSELoss()), nbcnn.SGD(model.parameters(), lr=0.5)
    x = np.zeros((2, 3), np.float32)
    assert step.train_step(x, x + 1, optimizer) == 2.25         # (2 + 0.5 - 1)^2
    assert model.shift.beta.numpy().tolist() == [1.5] * 3       # 2 - 0.5 * 2 * 1.5 / 3
    assert model.shift.seen.numpy().tolist() == [1.5] * 3 and model.shift.count.numpy() == 8 and model.vector.steps[0] == 1
    assert step.forward(x, x, training=False) == 9 and model.vector.steps[0] == 1       # (1.5 + 1.5)^2
    before = model.state_dict()
    assert not np.isfinite(step.train_step(x + np.inf, x, optimizer))
    assert all((before[name] == value).all() for name, value in model.state_dict().items()) and model.vector.steps[0] == 1
    nbcnn.save(model, tmp_path / "file")
    again = nbcnn.load(tmp_path / "file", [Shift]).state_dict()
    assert all(again[name].dtype == value.dtype and (again[name] == value).all() for name, value in before.items())
    with pytest.raises(TypeError, match=r"^seen: expected a Statistic, got ndarray; write layer.seen.set\(array\)"):
        model.shift.seen = x
    with pytest.raises(TypeError, match=r"^init: expected a function \(rng, shape\) -> array, as nbcnn.init.uniform\(fan_in\) "
                                        "gives one, got 3"):
        nbcnn.Parameter((3,), 3)


# ---- checkpoints

def saved(path):
    """A model with layers of one's own, in a file."""
    model = nbcnn.Sequential([("up", Upsample2d(2)), ("act", Softplus(0.5)), ("flatten", nbcnn.Flatten()),
                              ("linear", nbcnn.Linear(16, 2))], input_shape=(1, 2, 2), classes=["a", "b"])
    nbcnn.save(model, path)
    return model


def about(path):
    with open(path, "rb") as file:
        return json.loads(json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]["nbcnn"])


def forge(path, change):
    """Rewrite a checkpoint as a stranger may: other contents, and a checksum that fits."""
    text, tensors = about(path), load_file(path)
    change(text["structure"])
    del text["crc32"]
    text["crc32"] = checkpoint._checksum(text, tensors)
    save_file(tensors, path, metadata={"nbcnn": json.dumps(text)})


def test_a_checkpoint_names_the_class_and_where_it_is_from(tmp_path):
    model = saved(tmp_path / "file")
    assert about(tmp_path / "file")["structure"] == [
        ["up", "Upsample2d", {"scale": 2}, "own_layers"], ["act", "Softplus", {"beta": 0.5}, "own_layers"],
        ["flatten", "Flatten", {}], ["linear", "Linear", {"in_features": 16, "out_features": 2, "bias": True}]]
    assert model.own_layers() == [Upsample2d, Softplus]
    again = pickle.loads(pickle.dumps(model))
    assert again.structure() == model.structure() and again.act.options == (0.5,)


def test_without_the_classes_it_says_how_to_give_them(tmp_path):
    """The classes are imported here, and yet nothing is taken that was not given."""
    model, path = saved(tmp_path / "file"), tmp_path / "file"
    for layers, missing in ((), "up is a Upsample2d"), ([Upsample2d], "act is a Softplus"):
        with pytest.raises(ValueError) as caught:
            nbcnn.load(path, layers=layers)
        assert str(caught.value) == (
            f"{path}: layer {missing} from own_layers, none of nbcnn's, and loading imports nothing; give the file that defines it "
            "with --model FILE.py, or in Python the class, nbcnn.load(path, layers=[...])")
    found = nbcnn.load(path, layers=[Softplus, Upsample2d, nbcnn.ReLU])
    assert found.act.options == (0.5,) and (found.vector.data == model.vector.data).all()


@pytest.mark.parametrize("layers, error, message", [
    (Softplus, TypeError, "expected a list of classes derived from nbcnn.Layer, got <class 'own_layers.Softplus'>"),
    ("Softplus", TypeError, "expected a list of classes"), (None, TypeError, "expected a list of classes"),
    ([Softplus()], TypeError, "expected classes derived from nbcnn.Layer, got Softplus"),
    ([os.system], TypeError, "expected classes derived from nbcnn.Layer, got <built-in"),
    ([int], TypeError, "expected classes .* got <class 'int'>"),
    ([Softplus, type("Softplus", (nbcnn.Tanh,), {})], ValueError, "expected one class of each name, got two that are called S"),
])
def test_what_is_no_list_of_classes(tmp_path, layers, error, message):
    saved(tmp_path / "file")
    with pytest.raises(error, match=f"^layers: {message}"):
        nbcnn.load(tmp_path / "file", layers=layers)


class Forgetful(nbcnn.Tanh):
    def __init__(self, size):
        self.size = size


class Unwritable(nbcnn.Tanh):
    def __init__(self, size):
        self.arguments = {"size": size}


def test_layers_that_could_not_be_made_again_are_refused_before_anything_is_written(tmp_path):
    for layer, error, message in (
            (Forgetful(3), ValueError, "expected self.arguments of Forgetful to hold what its constructor takes, size, to make it "
                                       "again; got nothing$"),
            (Unwritable({1}), TypeError, "expected numbers, strings and lists of them in self.arguments, got .*set"),
            (Unwritable(np.float32(1)), TypeError, "expected .* got .*float32")):
        with pytest.raises(error, match=f"^layers: mine: {message}"):
            nbcnn.save(nbcnn.Sequential([("mine", layer)]), tmp_path / "file")
    two = nbcnn.Sequential([Softplus(), type("Softplus", (nbcnn.Tanh,), {})()])
    with pytest.raises(ValueError, match=r"^layers: expected one class of each name, got two that are called Softplus$"):
        two.structure()
    assert os.listdir(tmp_path) == []


class ReLU(nbcnn.Tanh):
    """Not nbcnn's."""


def test_a_class_with_the_name_of_one_of_nbcnn_s(tmp_path):
    nbcnn.save(nbcnn.Sequential([nbcnn.ReLU(), ReLU()]), tmp_path / "file")
    found = nbcnn.load(tmp_path / "file", layers=[ReLU])
    assert list(map(type, found.layers.values())) == [nbcnn.ReLU, ReLU]
    with pytest.raises(ValueError, match="layer 1 is a ReLU from test_own_layers"):
        nbcnn.load(tmp_path / "file")


# ---- a stranger's checkpoint

TRAP = "import os\nopen(os.environ['TRAP'], 'w')\nimport nbcnn\nclass Trap(nbcnn.Tanh):\n    pass\n"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module and a file that leave a mark when they are imported, where an import would find them."""
    for name in ("trap.py", "nbcnn_trap.py"):
        (tmp_path / name).write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists() and "trap" not in sys.modules


@pytest.mark.parametrize("entry", [
    ["act", "Trap", {}, "trap"], ["act", "Trap", {}, "trap.py"], ["act", "trap.Trap", {}, "trap"], ["act", "trap:Trap", {}, ""],
    ["act", "Softplus", {}, "trap"], ["act", "system", {"command": "touch sprung"}, "os"], ["act", "Layer", {}, "nbcnn.layers"],
    ["act", "ReLU", {}, "nbcnn"], ["act", "ReLU", {}, "nbcnn.layers"], ["act", "__import__", {"name": "trap"}, "builtins"],
    ["act", "Trap", {}, ["trap"]], ["act", "Trap", {}, 7], ["act", "Trap", {}, {"a": "trap"}], ["act", "Trap", {}, False],
    ["act", ["Trap"], {}, "trap"], ["act", None, {}, "trap"], ["act", {"a": 1}, {}, "trap"], ["act", "Trap", {}, "trap", "trap"],
    ["act", "Trap", None, "trap"], ["act", "Trap", "trap", "trap"], [], ["act"], "trap", None, {"kind": "Trap"},
    ["a" * 10**5, "b" * 10**5, {}, "c" * 10**5], ["a\n\x1b[31m", "b\u202e\r", {}, "c\x00\u2028"],
])
def test_loading_imports_nothing(tmp_path, trap, capfd, entry):
    saved(tmp_path / "file")
    forge(tmp_path / "file", lambda structure: structure.__setitem__(1, entry))
    for layers in ([], [Upsample2d]):
        with pytest.raises(ValueError, match=f"^{tmp_path}/file: ") as caught:
            nbcnn.load(tmp_path / "file", layers=layers)
        assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(tmp_path)) + 400
    for command in (evaluate, predict, train):
        given = ["--resume"] if command is train else ["a.png", "--checkpoint"] if command is predict else ["--checkpoint"]
        for more in ([], ["--model", str(FILE)]):
            assert command.main([*given, "file", *more]) == 2
            out, error = capfd.readouterr()
            assert out == "" and error.count("\n") == 1 and error[:-1].isprintable()


@pytest.mark.parametrize("arguments, message", [
    ({"beta": "1"}, "beta: expected a number from 0 to 1000, got '1'"), ({"beta": 1e999}, "beta: expected a number"),
    ({"gamma": 1}, "unexpected keyword argument 'gamma'"), ({"self": 1}, "self"), ([1], "mapping"), (None, "NoneType"),
])
def test_arguments_go_to_the_constructor_alone(tmp_path, arguments, message):
    saved(tmp_path / "file")
    forge(tmp_path / "file", lambda structure: structure[1].__setitem__(2, arguments))
    with pytest.raises(ValueError, match=f"^{tmp_path}/file: not a readable checkpoint: .*{message}"):
        nbcnn.load(tmp_path / "file", layers=[Upsample2d, Softplus])
