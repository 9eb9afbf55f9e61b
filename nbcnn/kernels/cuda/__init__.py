"""The GPU backend: one file per operation, forward and backward side by side, under the names that the CPU backend has."""
from nbcnn.kernels.cuda import images, losses, sgd, state
from nbcnn.kernels.cuda.adam import adam_update
from nbcnn.kernels.cuda.add import add_call, copy_call
from nbcnn.kernels.cuda.buffer import ALIGNMENT, Buffer, allocate, copy_of, flat_weight, place, unflat_weight, write
from nbcnn.kernels.cuda.compat import Graph, as_device_array, describe, empty, synchronize, to_device, to_host, unavailable
from nbcnn.kernels.cuda.gradients import Gradients, Partials
from nbcnn.kernels.cuda.launch import compile_calls, require, run
from nbcnn.kernels.cuda.losses import LazyNumber, loss_call, run_loss, softmax_along
from nbcnn.kernels.cuda.sgd import update, update_call
from nbcnn.kernels.cuda.vectors import move_average, multiply, sum_of_squares
from nbcnn.kernels.operation import operations

device = "cuda"

__all__ = [
    "device", "require", "unavailable", "describe", "compile_calls", "run", "synchronize", "Graph",
    # memory
    "ALIGNMENT", "Buffer", "Gradients", "Partials", "allocate", "as_device_array", "copy_of", "empty", "flat_weight", "place",
    "to_device", "to_host", "unflat_weight", "write",
    # besides the operations
    "LazyNumber", "loss_call", "add_call", "copy_call", "run_loss", "softmax_along", "adam_update", "update", "update_call",
    "move_average", "multiply", "sum_of_squares", "images", "losses", "sgd", "state",
]
globals().update(operations(__name__, __path__))      # Conv2d, Activation, ...: the classes in the files here
