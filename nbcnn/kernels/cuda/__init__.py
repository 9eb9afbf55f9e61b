"""The GPU backend: one file per operation, forward and backward side by side, under the names that the CPU backend has."""
from nbcnn.kernels.cuda import images, losses, sgd, state
from nbcnn.kernels.cuda.activations import GELU, LeakyReLU, ReLU, Sigmoid, Tanh
from nbcnn.kernels.cuda.avgpool2d import AvgPool2d
from nbcnn.kernels.cuda.buffer import ALIGNMENT, Buffer, allocate, copy_of, flat_weight, place, unflat_weight, write
from nbcnn.kernels.cuda.compat import Graph, as_device_array, describe, empty, synchronize, to_device, to_host, unavailable
from nbcnn.kernels.cuda.conv2d import Conv2d
from nbcnn.kernels.cuda.conv2d_maxpool2d import Conv2dMaxPool2d
from nbcnn.kernels.cuda.flatten import Flatten
from nbcnn.kernels.cuda.gradients import Gradients, Partials
from nbcnn.kernels.cuda.launch import require, run
from nbcnn.kernels.cuda.linear import Linear
from nbcnn.kernels.cuda.loss import LazyNumber, loss_call, run_loss
from nbcnn.kernels.cuda.maxpool2d import MaxPool2d
from nbcnn.kernels.cuda.sgd import update, update_call

device = "cuda"

__all__ = [
    "device", "require", "unavailable", "describe", "run", "synchronize", "Graph",
    # memory
    "ALIGNMENT", "Buffer", "Gradients", "Partials", "allocate", "as_device_array", "copy_of", "empty", "flat_weight", "place",
    "to_device", "to_host", "unflat_weight", "write",
    # operations
    "AvgPool2d", "Conv2d", "Conv2dMaxPool2d", "Flatten", "GELU", "LeakyReLU", "Linear", "MaxPool2d", "ReLU", "Sigmoid", "Tanh",
    "LazyNumber", "loss_call", "run_loss", "update", "update_call", "images", "losses", "sgd", "state",
]
