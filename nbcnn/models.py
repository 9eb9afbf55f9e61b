"""Ready-made networks, and networks of your own, by the name of the function that makes them."""
import contextlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback

import numpy as np

from nbcnn import init
from nbcnn.kernels.arguments import instance, ints, strings
from nbcnn.kernels.shown import one_line, shown
from nbcnn.layers import (
    GELU,
    Add,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Scale,
    Tanh,
)
from nbcnn.model import Network, Sequential


def cifar10_quick(*, input_shape=(3, 32, 32), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """The small CIFAR-10 network of the tutorials: three 5x5 convolutions with max-pooling, two linear layers, no activation.

    For images of any shape (C, H, W) from 8x8 pixels on. There are ten classes unless `classes` says otherwise: then, for images of
    CIFAR-10, 145,578 parameters and 24.7 MFLOP forward. The options are those of `nbcnn.Sequential`.

    Source: the CIFAR-10 quick model of Caffe, in the form that the PyTorch tutorials use.
    """
    return _quick(False, input_shape, classes, mean=mean, std=std, seed=seed, dtype=dtype)


def cifar10_quick_relu(*, input_shape=(3, 32, 32), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """`cifar10_quick` with a ReLU after each pool and after linear1."""
    return _quick(True, input_shape, classes, mean=mean, std=std, seed=seed, dtype=dtype)


def _quick(relu, input_shape, classes, **options):
    channels, height, width = _image(input_shape, 8)
    layers = [
        ("conv1", Conv2d(channels, 32, 5, padding=2)), ("maxpool1", MaxPool2d(2)), ("relu1", ReLU()),
        ("conv2", Conv2d(32, 32, 5, padding=2)), ("maxpool2", MaxPool2d(2)), ("relu2", ReLU()),
        ("conv3", Conv2d(32, 64, 5, padding=2)), ("maxpool3", MaxPool2d(2)), ("relu3", ReLU()),
        ("flatten", Flatten()), ("linear1", Linear(64 * (height // 8) * (width // 8), 64)), ("relu4", ReLU()),
        ("linear2", Linear(64, _outputs(classes))),
    ]
    return Sequential([(name, layer) for name, layer in layers if relu or not isinstance(layer, ReLU)],
                      input_shape=input_shape, classes=classes, **options)


def lenet5(*, input_shape=(1, 32, 32), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """LeNet-5: two 5x5 convolutions with tanh and average pooling, three linear layers.

    For images of any shape (C, H, W) from 12x12 pixels on; where a side is below 32, two pixels of zeros are around them. For ten
    digits of 28x28 or 32x32 pixels: 61,706 parameters. The options are those of `nbcnn.Sequential`.

    Source: LeCun et al., Gradient-based learning applied to document recognition (1998), with all maps connected and a linear
    output, as it is taught today.
    """
    channels, height, width = _image(input_shape, 12)
    padding = 2 if min(height, width) < 32 else 0
    rows, columns = (((size + 2 * padding - 4) // 2 - 4) // 2 for size in (height, width))
    return Sequential([
        ("conv1", Conv2d(channels, 6, 5, padding=padding)), ("tanh1", Tanh()), ("avgpool1", AvgPool2d(2)),
        ("conv2", Conv2d(6, 16, 5)), ("tanh2", Tanh()), ("avgpool2", AvgPool2d(2)), ("flatten", Flatten()),
        ("linear1", Linear(16 * rows * columns, 120)), ("tanh3", Tanh()), ("linear2", Linear(120, 84)), ("tanh4", Tanh()),
        ("linear3", Linear(84, _outputs(classes)))],
        input_shape=input_shape, mean=mean, std=std, classes=classes, seed=seed, dtype=dtype)


def mlp(*, input_shape=(1, 28, 28), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """Two hidden layers of 512 with ReLU, and no convolution: what the first PyTorch tutorial trains.

    For images of any shape (C, H, W). For ten classes of 28x28 grey pixels: 669,706 parameters.
    """
    pixels = math.prod(_image(input_shape, 1))
    return Sequential([
        ("flatten", Flatten()), ("linear1", Linear(pixels, 512)), ("relu1", ReLU()), ("linear2", Linear(512, 512)),
        ("relu2", ReLU()), ("linear3", Linear(512, _outputs(classes)))],
        input_shape=input_shape, mean=mean, std=std, classes=classes, seed=seed, dtype=dtype)


def resnet20(*, input_shape=(3, 32, 32), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """The residual network of 20 layers for CIFAR-10: nine blocks of two 3x3 convolutions, with 16, 32 and 64 channels.

    For images of any shape (C, H, W) from 4x4 pixels on. For ten classes of 32x32 colour pixels: 272,474 parameters. A shortcut
    that changes the size is a 1x1 convolution with batch norm: option B. Convolutions begin with normal numbers of variance
    2/fan_in.

    Source: He et al., Deep residual learning for image recognition (2015), section 4.2.
    """
    channels, *_ = _image(input_shape, 4)
    layers = [("conv", _he(Conv2d(channels, 16, 3, padding=1, bias=False))), ("norm", BatchNorm2d(16)), ("relu", ReLU())]
    before = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in (1, 2, 3):
            stride, name, shortcut = 1 + (width > before), f"block{stage}_{block}", layers[-1][0]
            layers += [
                (f"{name}_conv1", _he(Conv2d(before, width, 3, stride, 1, bias=False))), (f"{name}_norm1", BatchNorm2d(width)),
                (f"{name}_relu1", ReLU()),
                (f"{name}_conv2", _he(Conv2d(width, width, 3, 1, 1, bias=False))), (f"{name}_norm2", BatchNorm2d(width))]
            main = layers[-1][0]
            if width > before:
                layers += [(f"{name}_shortcut", _he(Conv2d(before, width, 1, stride, bias=False)), [shortcut]),
                           (f"{name}_norm3", BatchNorm2d(width))]
                shortcut = layers[-1][0]
            layers += [(f"{name}_add", Add(), [main, shortcut]), (f"{name}_relu2", ReLU())]
            before = width
    return Network([*layers, ("avgpool", GlobalAvgPool2d()), ("flatten", Flatten()), ("linear", Linear(64, _outputs(classes)))],
                   input_shape=input_shape, mean=mean, std=std, classes=classes, seed=seed, dtype=dtype)


def _he(conv):
    """The convolution with initial values of variance 2/fan_in."""
    conv.weight.init = init.normal(math.sqrt(2 / math.prod(conv.weight.shape[1:])))
    return conv


def airbench94(*, input_shape=(3, 32, 32), mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """A small network that reaches 94 % on CIFAR-10 in ten epochs, with the recipe of that name.

    For images of any shape (C, H, W) from 9x9 pixels on. For ten classes of 32x32 colour pixels: 1,972,792 parameters, of which
    conv1's weights and the scales of batch norm are not trained. `whiten` gives conv1 its values.

    Source: Jordan, 94 % on CIFAR-10 in 3.29 seconds on a single GPU (2024), airbench94.
    """
    channels, height, width = _image(input_shape, 9)
    layers = [("conv1", Conv2d(channels, 2 * 4 * channels, 2)), ("gelu1", GELU())]
    layers[0][1].bias.init = init.constant(0)
    before, k = 2 * 4 * channels, 2
    for outputs in (64, 256, 256):
        for inputs, pool in ((before, [(f"maxpool{k // 2}", MaxPool2d(2))]), (outputs, [])):
            conv = Conv2d(inputs, outputs, 3, padding=1, bias=False)
            conv.weight.init = init.dirac(9 * inputs)
            layers += [(f"conv{k}", conv), *pool, (f"norm{k}", BatchNorm2d(outputs, eps=1e-12, momentum=0.4)), (f"gelu{k}", GELU())]
            k += 1
        before = outputs
    layers += [("maxpool4", MaxPool2d(((height - 1) // 8, (width - 1) // 8))), ("flatten", Flatten()),
               ("linear", Linear(before, _outputs(classes), bias=False)), ("scale", Scale(1 / 9))]
    frozen = ["conv1.weight", *(f"{name}.weight" for name, _ in layers if name.startswith("norm"))]
    return Sequential(layers, input_shape=input_shape, mean=mean, std=std, classes=classes, seed=seed, dtype=dtype, frozen=frozen)


def whiten(model, images):
    """Give conv1 of `airbench94` its weights: with them its outputs are uncorrelated, and all of about the same size.

    They are the eigenvectors of the covariance of the images' 2x2 patches, each over sqrt(eigenvalue + 5e-4), the largest first,
    and then their negatives.

    Parameters
    ----------
    model : Network
        With a conv1 of 2x2 pixels and twice as many outputs as a patch has numbers.
    images : uint8 array (N, C, H, W)
        They are normalised with the model's mean and std. Some 5,000 are enough.
    """
    table, w = model.table(images.shape[1]).astype(np.float64), model.conv1.weight
    size, count, total, products = w.size // w.shape[0], 0, 0, 0
    for start in range(0, len(images), 500):        # float64 takes eight times the memory of bytes, and patches four times that
        part = images[start:start + 500]
        x = np.stack([table[c][part[:, c]] for c in range(part.shape[1])], 1)
        patches = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3)).transpose(0, 2, 3, 1, 4, 5).reshape(-1, size)
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    vectors = (vectors / np.sqrt(values + 5e-4)).T[::-1]
    w.set(np.concatenate([vectors, -vectors]).reshape(w.shape))


def _image(input_shape, least):
    """(C, H, W), of at least so many pixels a side."""
    channels, height, width = ints(input_shape, "input_shape", "the shape (C, H, W) of an image", 1, 3)
    if min(height, width) < least:
        raise ValueError(f"input_shape: expected images of at least {least}x{least} pixels, got {height}x{width}")
    return channels, height, width


def _outputs(classes):
    """How many outputs: one for each class, ten where these are not known."""
    return 10 if classes is None else len(strings(classes, "classes"))


MODELS = {maker.__name__: maker for maker in (cifar10_quick, cifar10_quick_relu, lenet5, mlp, resnet20, airbench94)}


def find(name):
    """The function that makes the network of a name.

    Parameters
    ----------
    name : str
        One of MODELS, or "module:function" or "FILE.py:function", whose function returns a Sequential.

    Raises
    ------
    TypeError
        When `name` is no str.
    ValueError
        When there is no such function, or its module cannot be imported: one line that says where.
    """
    instance(name, "name", str)
    if name in MODELS:
        return MODELS[name]
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise ValueError(f"expected the name of a network, {', '.join(MODELS)}, module:function or FILE.py:function, "
                         f"got {shown(name)}")
    with _explained():
        module = _module(place)
    maker = getattr(module, function, None)
    if not callable(maker):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise ValueError(f"no function {shown(function)} in {one_line(place)}, which defines {', '.join(own) or 'none'}")
    return maker


def own_layers(name):
    """The classes of layers that a file or module of one's own defines or imports, which it runs to find out.

    Parameters
    ----------
    name : str
        FILE.py, module, or what `find` takes, whose function is not called.

    Raises
    ------
    ValueError
        When the module cannot be imported: one line that says where.
    """
    place = name if name.endswith(".py") else name.rpartition(":")[0] or name
    with _explained():
        module = _module(place)
    found = {kind.__name__: kind for kind in _derived(Layer) if is_importable(kind)}
    found |= {kind.__name__: kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Layer)}
    return [kind for kind in found.values() if not kind.__module__.startswith(f"{__package__}.")]


def is_importable(kind):
    """Whether a class is found under its name in its module, as one within a function is not."""
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind


def _derived(kind):
    """All classes derived from one."""
    for derived in kind.__subclasses__():
        yield derived
        yield from _derived(derived)


def make(network, **options):
    """The network of a name, or the one that a function makes.

    Parameters
    ----------
    network : str or callable
        A name that `find` takes, or a function.
    **options
        The function is called with those that it has parameters for.

    Returns
    -------
    model : Network or Sequential

    Raises
    ------
    TypeError
        When `network` is neither.
    ValueError
        When there is no such function, it fails, or it returns something else: one line that says where.
    """
    maker = network if callable(network) else find(instance(network, "network", str, "the name of a network or a function"))
    with _explained():
        parameters = inspect.signature(maker).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
            options = {name: value for name, value in options.items() if name in names}
        model = maker(**options)
    if not isinstance(model, Network):
        raise ValueError("expected a function that returns a nbcnn.Sequential or Network, got "
                         f"{one_line(type(model).__name__)}")
    return model


def _module(place):
    """A module by its name or its file. It may import modules beside its file, or in the working folder, as a script may."""
    if not place.endswith(".py"):
        sys.path[:0] = [os.getcwd()] if os.getcwd() not in sys.path else []
        return importlib.import_module(place)
    if not os.path.isfile(place):
        raise FileNotFoundError(f"no file {one_line(place)}")
    folder = os.path.dirname(os.path.abspath(place))
    sys.path[:0] = [folder] if folder not in sys.path else []
    spec = importlib.util.spec_from_file_location(place, place)
    module = sys.modules[place] = importlib.util.module_from_spec(spec)     # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _explained():
    """Whatever the user's code raises becomes a ValueError of one line that names the place in that code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        ours = os.path.dirname(__file__) + os.sep
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if not frame.filename.startswith((ours, "<")) and "importlib" not in frame.filename]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        if isinstance(error, SyntaxError):      # its message names the place
            where = ""
        raise ValueError(f"{type(error).__name__}: {one_line(str(error), 200)}{where}") from None
