"""Ready-made networks."""
import numpy as np

from nbcnn.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU
from nbcnn.model import Sequential


def cifar10_quick(*, mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """The small CIFAR-10 network of the tutorials: three 5x5 convolutions with max-pooling, two linear layers, no activation.

    145,578 parameters, 24.7 MFLOP forward per 32x32 picture. The options are those of `nbcnn.Sequential`.

    Source: the CIFAR-10 quick model of Caffe, in the form that the PyTorch tutorials use.
    """
    return Sequential(_layers(), input_shape=(3, 32, 32), mean=mean, std=std, classes=classes, seed=seed, dtype=dtype)


def cifar10_quick_relu(*, mean=None, std=None, classes=None, seed=0, dtype=np.float32):
    """`cifar10_quick` with a ReLU after each pool and after linear1."""
    layers = []
    for name, layer in _layers():
        layers.append((name, layer))
        if isinstance(layer, MaxPool2d):
            layers.append((f"relu{name[-1]}", ReLU()))
        elif name == "linear1":
            layers.append(("relu4", ReLU()))
    return Sequential(layers, input_shape=(3, 32, 32), mean=mean, std=std, classes=classes, seed=seed, dtype=dtype)


def _layers():
    return [
        ("conv1", Conv2d(3, 32, 5, padding=2)), ("maxpool1", MaxPool2d(2)),
        ("conv2", Conv2d(32, 32, 5, padding=2)), ("maxpool2", MaxPool2d(2)),
        ("conv3", Conv2d(32, 64, 5, padding=2)), ("maxpool3", MaxPool2d(2)),
        ("flatten", Flatten()), ("linear1", Linear(1024, 64)), ("linear2", Linear(64, 10)),
    ]
