"""Networks by name: the ready-made ones, and functions of one's own, with all that can be wrong with them."""
import sys
import zlib

import numpy as np
import pytest

import nbcnn
from nbcnn import models

NET = """
import nbcnn

def make(classes, seed=3):
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, len(classes))], seed=seed)

def fixed():
    return nbcnn.Sequential([nbcnn.Linear(4, 3)])

def everything(**options):
    everything.options = options
    return fixed()

def other():
    return [nbcnn.Flatten()]

def fails():
    return nbcnn.Conv2d(1, 0, 3)

def leaves():
    raise SystemExit(3)

number = 7
"""
INITIAL = 0x8e60e647        # CRC-32 of the initial values at 9240e5b, where both networks were for 32x32 colours only
OPTIONS = dict(input_shape=(3, 2, 2), mean=[0.5] * 3, std=[0.2] * 3, classes=["a", "b", "c"], seed=5)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in set(sys.modules):
        if name.split(".")[0] in ("own", "helper"):
            monkeypatch.delitem(sys.modules, name)
    (tmp_path / "own.py").write_text(NET)
    return tmp_path


def test_ready_made_networks_take_what_they_need():
    model = models.make("cifar10_quick", **{**OPTIONS, "input_shape": (3, 32, 32)})
    assert model.classes == ["a", "b", "c"] and model.mean == [0.5] * 3 and model.seed == 5
    assert model.shapes((3, 32, 32))["linear2"] == (3,)
    assert models.make("cifar10_quick_relu").shapes((3, 32, 32))["linear2"] == (10,)


# The fewest pixels of a side, and the parameters of ten classes of the shape that is the default.
MADE = {"cifar10_quick": (8, 145_578), "cifar10_quick_relu": (8, 145_578), "lenet5": (12, 61_706), "mlp": (1, 669_706),
        "resnet20": (4, 272_474), "airbench94": (9, 1_972_792)}


def test_every_ready_made_network_is_here():
    assert list(MADE) == list(models.MODELS)


@pytest.mark.parametrize("name", MADE)
def test_ready_made_networks_take_images_of_any_shape(name):
    maker, (least, count) = models.MODELS[name], MADE[name]
    for shape in ((1, least, least), (1, 28, 28), (3, 48, 33)):
        model = maker(input_shape=shape, classes=["a", "b"])
        assert model.input_shape == shape and model.output_shape(shape) == (2,)
    assert model(np.zeros((2, *shape), np.uint8)).shape == (2, 2)
    for shape, error in (((1, least - 1, least), f"(at least {least}x{least} pixels, got {least - 1}x{least}|an int >= 1, got 0)"),
                         ((3, 32), r"got \(3, 32\)")):
        with pytest.raises(ValueError, match=rf"^input_shape: .*expected .*{error}"):
            maker(input_shape=shape)
    assert sum(parameter.size for parameter in maker().parameters()) == count and f"{count:,} parameters" in maker.__doc__ + (
        models.cifar10_quick.__doc__ if name == "cifar10_quick_relu" else "")


def test_lenet5_is_of_one_size_for_digits_of_28_and_of_32_pixels():
    """What is around the smaller ones makes up for it, as the docstring says."""
    for size in (28, 32):
        assert sum(parameter.size for parameter in models.lenet5(input_shape=(1, size, size)).parameters()) == MADE["lenet5"][1]


@pytest.mark.parametrize("maker", [models.cifar10_quick, models.cifar10_quick_relu])
def test_initial_values_are_those_of_before(maker):
    values = b"".join(value.tobytes() for value in maker().state_dict().values())
    assert zlib.crc32(values) == INITIAL        # what runs of before begin with, too


def test_convolutions_begin_as_published():
    """resnet20's with variance 2/fan_in, within five deviations of what is found of so many numbers. airbench94's copy their first
    channels; the others are uniform up to 1/sqrt(fan_in), as PyTorch draws them."""
    weights = [value for value in models.resnet20(dtype=np.float64).state_dict().values() if value.ndim == 4]
    assert len(weights) == 21       # 19 and two shortcuts
    for w in weights:
        assert np.square(w).mean() * w[0].size / 2 == pytest.approx(1, abs=5 * (2 / w.size) ** 0.5)
    w, same = models.airbench94(dtype=np.float64).conv2.weight.numpy(), np.zeros((24, 24, 3, 3))
    same[range(24), range(24), 1, 1] = 1
    assert w.shape == (64, 24, 3, 3) and (w[:24] == same).all() and 0.99 < abs(w[24:]).max() * (9 * 24) ** 0.5 <= 1


def test_whitened_patches_are_uncorrelated():
    """Outputs of the first twelve kernels have covariance 1 but for 5e-4, which is added to the eigenvalues, the largest first."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 9, 9), dtype=np.uint8)
    images[:, 1] = images[:, 0] // 2 + 20       # correlated
    model = models.airbench94(input_shape=(3, 9, 9), mean=[0.4] * 3, std=[0.3, 0.2, 0.1], dtype=np.float64)
    assert model.frozen[0] == "conv1.weight" and not model.conv1.bias.numpy().any()
    models.whiten(model, images)
    step = nbcnn.BackpropScheduler(model, None, fuse=False)
    step.predict(images)
    y = step.outputs["conv1"].transpose(0, 2, 3, 1).reshape(-1, 24)
    np.testing.assert_allclose(y[:, 12:], -y[:, :12], rtol=0, atol=1e-12)
    covariance = np.cov(y[:, :12], rowvar=False, bias=True)
    large = np.diag(covariance) > 0.5           # of eigenvalues that 5e-4 does not matter for
    np.testing.assert_allclose(covariance[large][:, large], np.eye(large.sum()), rtol=0, atol=0.02)
    assert large.sum() > 6 and abs(covariance - np.diag(np.diag(covariance))).max() < 1e-9
    x = (images / 255 - 0.4) / np.reshape(model.std, (3, 1, 1))
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3)).transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values = np.linalg.eigvalsh(np.cov(patches, rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(np.diag(covariance), values / (values + 5e-4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("place", ["own", "own.py", "./own.py"])
def test_a_function_gets_what_it_has_parameters_for(place, folder):
    model = models.make(f"{place}:make", **OPTIONS)
    assert model.seed == 5 and model.shapes((3, 2, 2))["1"] == (3,)
    assert len(models.make(f"{place}:fixed", **OPTIONS)) == 1
    models.make(f"{place}:everything", **OPTIONS)
    assert sys.modules[place].everything.options == OPTIONS


def test_what_lies_beside_a_file_can_be_imported(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "helper.py").write_text("WIDTH = 9\n")
    (folder / "deep" / "net.py").write_text("import nbcnn\nfrom helper import WIDTH\n\n\ndef make():\n"
                                            "    return nbcnn.Sequential([nbcnn.Linear(WIDTH, 2)])\n")
    assert models.make("deep/net.py:make")[0].in_features == 9
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").touch()
    (folder / "own" / "nets.py").write_text(NET)
    assert isinstance(models.make("own.nets:fixed"), nbcnn.Sequential)


@pytest.mark.parametrize("name, message", [
    ("resnet", "expected the name of a network, cifar10_quick, .*, airbench94, module:function or FILE.py:.*, got 'resnet'"),
    (":make", "got ':make'"), ("own.py:", "got 'own.py:'"), ("", "got ''"),
    ("nowhere.py:make", r"^FileNotFoundError: no file nowhere.py$"),
    ("nowhere:make", "^ModuleNotFoundError: No module named 'nowhere'$"),
    ("own.py:mkae", "^no function 'mkae' in own.py, which defines make, fixed, everything, other, fails, leaves"),
    ("own.py:number", "no function 'number'"),
    ("own.py:other", "^expected a function that returns a nbcnn.Sequential or Network, got list$"),
    ("own.py:fails", r"^ValueError: out_channels: expected an int >= 1, got 0 \(.*own.py, line 18\)$"),
    ("own.py:leaves", r"^SystemExit: 3 \(.*own.py, line 21\)$"),
    ("own.py:make", r"^TypeError: .*'classes'"),
])
def test_what_can_be_wrong_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.make(name)
    assert "\n" not in str(caught.value)


def test_what_is_no_name_is_refused():
    with pytest.raises(TypeError, match=r"^network: expected the name of a network or a function, got NoneType$"):
        models.make(None)
    with pytest.raises(TypeError, match=r"^name: expected a str, got list$"):
        models.find([])
    with pytest.raises(TypeError, match=r"^classes: expected a sequence of str, got 0.5$"):
        models.cifar10_quick(classes=0.5)


@pytest.mark.parametrize("text, message", [
    ("def make(:\n", r"^SyntaxError: [^()]*\(own.py, line 1\)$"),
    ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*own.py, line 2\)"),
    ("import nothing_of_that_name\n", r"ModuleNotFoundError: .*nothing_of_that_name' \(.*own.py, line 1\)"),
    ("import sys\nsys.exit(0)\n", r"SystemExit: 0 \(.*own.py, line 2\)"),
])
def test_a_module_that_cannot_be_imported(folder, text, message):
    (folder / "own.py").write_text(text)
    for name in ("own.py:make", "own:make"):
        with pytest.raises(ValueError, match=message):
            models.make(name)


def test_the_place_is_in_ones_own_code_whatever_its_file_is_called(folder):
    """Also beside a folder whose name begins as the package's does."""
    beside = folder / "nbcnn_nets.py"
    beside.write_text("def make():\n    raise RuntimeError('boom')\n")
    with pytest.raises(ValueError, match=r"^RuntimeError: boom \(.*nbcnn_nets.py, line 2\)$"):
        models.make("nbcnn_nets.py:make")


def test_a_function_is_found_once_and_called_later(folder):
    (folder / "count.py").write_text("print('read')\n" + NET)
    maker = models.find("count.py:make")
    assert models.make(maker, **OPTIONS).seed == 5 and maker is sys.modules["count.py"].make
