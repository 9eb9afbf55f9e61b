"""The CPU backend: one file per operation, forward and backward side by side.

The scheduler sees a backend as a namespace: `Buffer` and `allocate` for memory, and a class for each operation
a layer can ask for; `kernels/operation.py` says what these have in common.
"""
from nbcnn.kernels.cpu.buffer import ALIGNMENT, Buffer, allocate, flat_weight
from nbcnn.kernels.cpu.conv2d import Conv2d
from nbcnn.kernels.cpu.conv2d_maxpool2d import Conv2dMaxPool2d
from nbcnn.kernels.cpu.flatten import Flatten
from nbcnn.kernels.cpu.linear import Linear
from nbcnn.kernels.cpu.maxpool2d import MaxPool2d
from nbcnn.kernels.cpu.relu import ReLU

__all__ = ["ALIGNMENT", "Buffer", "Conv2d", "Conv2dMaxPool2d", "Flatten", "Linear", "MaxPool2d", "ReLU", "allocate", "flat_weight"]
