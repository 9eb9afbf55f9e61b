"""Ready-made networks, and networks of your own, by the name of the function that makes them."""
import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback

import numpy as np

from nbcnn.kernels.arguments import instance, ints, strings
from nbcnn.kernels.shown import one_line, shown
from nbcnn.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU
from nbcnn.model import Sequential


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
    channels, height, width = ints(input_shape, "input_shape", "the shape (C, H, W) of an image", 1, 3)
    if min(height, width) < 8:
        raise ValueError(f"input_shape: expected images of at least 8x8 pixels, for three poolings, got {height}x{width}")
    classes = None if classes is None else strings(classes, "classes")
    layers = [
        ("conv1", Conv2d(channels, 32, 5, padding=2)), ("maxpool1", MaxPool2d(2)), ("relu1", ReLU()),
        ("conv2", Conv2d(32, 32, 5, padding=2)), ("maxpool2", MaxPool2d(2)), ("relu2", ReLU()),
        ("conv3", Conv2d(32, 64, 5, padding=2)), ("maxpool3", MaxPool2d(2)), ("relu3", ReLU()),
        ("flatten", Flatten()), ("linear1", Linear(64 * (height // 8) * (width // 8), 64)), ("relu4", ReLU()),
        ("linear2", Linear(64, 10 if classes is None else len(classes))),
    ]
    return Sequential([(name, layer) for name, layer in layers if relu or not isinstance(layer, ReLU)],
                      input_shape=input_shape, classes=classes, **options)


MODELS = {"cifar10_quick": cifar10_quick, "cifar10_quick_relu": cifar10_quick_relu}


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
    model : Sequential

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
    if not isinstance(model, Sequential):
        raise ValueError(f"expected a function that returns a nbcnn.Sequential, got {one_line(type(model).__name__)}")
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
