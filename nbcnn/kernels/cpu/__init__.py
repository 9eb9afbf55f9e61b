"""The CPU backend: one file per operation, forward and backward side by side.

The scheduler sees a backend as a namespace: `Buffer` and `allocate` for memory, functions that copy and run, and a class for each
operation a layer can ask for; `kernels/operation.py` says what these have in common.
"""
from nbcnn.kernels.cpu.activations import GELU, LeakyReLU, ReLU, Sigmoid, Tanh
from nbcnn.kernels.cpu.avgpool2d import AvgPool2d
from nbcnn.kernels.cpu.buffer import (
    ALIGNMENT,
    Buffer,
    Gradients,
    Partials,
    allocate,
    copy_of,
    flat_weight,
    place,
    to_device,
    to_host,
    unflat_weight,
    write,
)
from nbcnn.kernels.cpu.conv2d import Conv2d
from nbcnn.kernels.cpu.conv2d_maxpool2d import Conv2dMaxPool2d
from nbcnn.kernels.cpu.flatten import Flatten
from nbcnn.kernels.cpu.launch import require, run
from nbcnn.kernels.cpu.linear import Linear
from nbcnn.kernels.cpu.losses import run_loss
from nbcnn.kernels.cpu.maxpool2d import MaxPool2d
from nbcnn.kernels.cpu.sgd import update

device = "cpu"

__all__ = [
    "device", "require", "run",
    # memory
    "ALIGNMENT", "Buffer", "Gradients", "Partials", "allocate", "copy_of", "flat_weight", "place", "to_device", "to_host",
    "unflat_weight", "write",
    # operations
    "AvgPool2d", "Conv2d", "Conv2dMaxPool2d", "Flatten", "GELU", "LeakyReLU", "Linear", "MaxPool2d", "ReLU", "Sigmoid", "Tanh",
    "run_loss", "update",
]
