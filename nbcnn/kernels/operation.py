"""What a backend's operations have in common, and a call of a kernel."""
import functools
import importlib
import inspect
import math
import pkgutil
from typing import NamedTuple

import numpy as np

from nbcnn.kernels.arguments import several_values

NO_WINNER = 255    # the cell of a pooling window that nobody won, as a ReLU gave 0: the same byte on every device


class Call(NamedTuple):
    """A kernel and what it is called with."""
    kernel: object
    arguments: tuple
    flop: int = 0       # the multiplications and additions of the formula, where these are its work; padding included


class Place(NamedTuple):
    """Where in a model an operation is: the model's seed, the number of its layer, and how many training steps are done.

    `steps` is an array of one integer, which kernels read: lists of calls stay the same from step to step.
    """
    seed: int
    index: int
    steps: object


class Operation:
    """The computation of a layer for samples of one shape.

    forward and backward run nothing: they return lists of calls, which the scheduler keeps, runs and times.
    """
    shares = False      # whether y and dy lie in the memory of x and dx, in another shape, and there is nothing to compute
    hands_on = False    # whether each dx is dy, and so may lie in its memory
    stateful = False    # whether there is something to commit, or forward reads what `place` says
    bfloat16 = False    # whether activations and their gradients may be bfloat16, each one of them or float32
    sums_float32 = False    # whether it sums up products of bfloat16 in float32, so that what comes out is worth being float32
    place = None        # the scheduler sets it

    def parts(self, n):
        """Into how many partial sums the gradients of n samples are split: it follows from the shapes alone."""
        return 1

    def reserve(self, batch):
        """Allocate what is kept from forward to backward, and workspace, for up to `batch` samples."""

    def bytes(self, batch):
        """About how many bytes `reserve` allocates."""
        return 0

    def backward_bytes(self, batch, dx):
        """About how many bytes the first backward allocates; `dx` says whether it gives the input gradient."""
        return 0

    def stored(self, x_dtypes, y_dtype):
        """What the inputs and y are stored in: the scheduler says so before it asks for `bytes` and calls `reserve`."""

    def forward(self, n, y, x, params):
        """The calls that compute y of the first n samples, in training.

        Parameters
        ----------
        n : int
        y, x : Buffer
            All of y is written. For a layer of several inputs, x is a tuple.
        params : tuple of flat arrays
            As (weight, bias): in the order in which the layer sets them, None for one that it leaves out; () without parameters.
        """
        raise TypeError(f"{type(self).__name__}: an operation defines forward")

    def evaluate(self, n, y, x, params):
        """The calls that compute y where nothing is trained; by default those of forward."""
        return self.forward(n, y, x, params)

    def forward_with_loss(self, n, y, x, params, loss):
        """The calls of forward and then `loss`, the call of a loss of y."""
        return [*self.forward(n, y, x, params), loss]

    def commit(self, n):
        """The calls that change what a layer keeps besides its parameters, as running statistics.

        They are made after forward, once the loss is known to be finite, and before backward, which must not read what they change.
        """
        return []

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """The calls that compute dx and dparams of the first n samples, after a forward of the same n.

        Parameters
        ----------
        n : int
        dx : Buffer or None
            All of it is written; None when nobody needs it. For a layer of several inputs, a tuple of these.
        dparams : tuple of flat arrays
            Where the gradients of params go; None for one that is not wanted, as that of a frozen parameter.
        dy, x, y : Buffer
        params : tuple of flat arrays
        add : tuple of bool
            Whether to add to each of dparams instead of overwriting it.
        """
        raise TypeError(f"{type(self).__name__}: an operation defines backward")


class Elementwise(Operation):
    """A function of each element, made of its two kernels. A backend's `Activation` says how these are called.

    Parameters
    ----------
    kernels : pair
        forward(y, x, *options, count) and backward(dx, dy, x or y, *options, count), each for the first `count` numbers of flat
        arrays. Backward reads what its third argument is called.
    shape : tuple
    options : sequence of numbers
    dtype : dtype
    """

    def __init__(self, kernels, shape, options, dtype):
        self.kernels, self.size = kernels, math.prod(shape)
        self.options, self.reads_y = tuple(map(np.dtype(dtype).type, options)), reads(kernels[1]) == "y"

    def call(self, kernel, n, *buffers):
        """The call of a kernel for n samples."""
        raise TypeError(f"{type(self).__name__}: an elementwise operation defines call")

    def forward(self, n, y, x, params):
        return [self.call(self.kernels[0], n, y, x)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [self.call(self.kernels[1], n, dx, dy, y if self.reads_y else x)]


@functools.cache
def reads(backward):
    """What the backward kernel of an elementwise function reads besides dy: "x" or "y", as its third argument is called."""
    name = [*inspect.signature(backward).parameters, "", "", ""][2]
    if name not in ("x", "y"):
        raise ValueError(f"kernels: expected backward(dx, dy, x or y, ..., count), got {inspect.signature(backward)}")
    return name


class Normalizing(Operation):
    """Batch normalization of images (C, H, W) or vectors (F,), and an activation of what comes out, made of what a backend's
    `BatchNorm` says: how its kernels are called.

    Parameters
    ----------
    shape : tuple
    eps : float
    momentum : float or None
    activation : (str, tuple) or None
        The name of a function in `activations.py`, and its options.
    running : (array, array, array) or None
        The running mean and variance, and the number of batches in them (int64), flat.
    dtype : dtype

    Attributes
    ----------
    mean, var : array (C,)
        Of the last batch, the biased variance: all that is kept from forward to backward.
    """

    def __init__(self, shape, eps, momentum, activation, running, dtype):
        self.shape, self.C, self.pixels, self.running, self.dtype = shape, shape[0], math.prod(shape[1:]), running, np.dtype(dtype)
        self.function, options = activation or ("identity", ())
        self.options, self.stateful = tuple(map(self.dtype.type, options)), running is not None
        self.eps, self.momentum, self.cumulative = self.dtype.type(eps), self.dtype.type(momentum or 0), momentum is None

    def statistics(self, n, x):
        """The calls that compute `mean` and `var` of n samples."""
        raise TypeError(f"{type(self).__name__}: batch normalization defines statistics")

    def normalize(self, n, y, x, params, mean, var):
        """The calls that compute y with a mean and a variance of each channel."""
        raise TypeError(f"{type(self).__name__}: batch normalization defines normalize")

    def update(self, n):
        """The calls that move the running statistics towards those of n samples."""
        raise TypeError(f"{type(self).__name__}: batch normalization defines update")

    def forward(self, n, y, x, params):
        several_values(n, self.shape)
        return [*self.statistics(n, x), *self.normalize(n, y, x, params, self.mean, self.var)] if n else []

    def evaluate(self, n, y, x, params):
        if not self.stateful:
            return self.forward(n, y, x, params)
        return self.normalize(n, y, x, params, *self.running[:2])

    def commit(self, n):
        return self.update(n) if self.stateful and n else []


class Dropping(Operation):
    """Dropout, made of what a backend's `Dropout` says: how its kernels are called.

    Parameters
    ----------
    shape : tuple
    p : float
        The probability with which a cell is dropped, that is multiplied by 0.
    planes : bool
        Whether a cell is a plane of an image, or else an element.
    dtype : dtype

    Attributes
    ----------
    mask : Buffer of uint8
        1 where a cell stays: kept from forward to backward. Whole groups of four samples are drawn.
    """
    stateful = True

    def __init__(self, shape, p, planes, dtype):
        self.cells, self.copies = (shape[:1], math.prod(shape[1:])) if planes else (tuple(shape), 1)
        self.limit = np.uint64(round(p * 2**32))        # a random number of 32 bits below it drops a cell
        self.scale = np.dtype(dtype).type(1 / (1 - p) if p < 1 else 0)

    def draw(self, n):
        """The call that draws which cells of n samples stay."""
        raise TypeError(f"{type(self).__name__}: dropout defines draw")

    def apply(self, n, y, x):
        """The call that computes y of x, or dx of dy."""
        raise TypeError(f"{type(self).__name__}: dropout defines apply")

    def key(self):
        """What a mask depends on, as the kernel that draws takes it: two halves of the seed, the layer, and where the step lies."""
        seed = (self.place.seed ^ self.place.seed >> 64) % 2**64        # of its 128 bits
        return (*map(np.uint64, (seed % 2**32, seed >> 32, self.place.index)), self.place.steps)

    def forward(self, n, y, x, params):
        return [self.draw(n), self.apply(n, y, x)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [self.apply(n, dx, dy)]


def groups_of_four(n):
    """How many groups of four samples there are, the last of which may be smaller."""
    return -(-n // 4)


def run_forward(backend, operation, x, y_shape, params=()):
    """y of an operation, an array (N, *y_shape) for x (N, ...), or for a list of such arrays."""
    several = isinstance(x, list)
    arrays = x if several else [x]
    held, n, dtype = tuple(map(backend.Buffer.holding, arrays)), len(arrays[0]), arrays[0].dtype
    y = backend.Buffer(n, y_shape, dtype)
    backend.run(operation.forward(n, y, held if several else held[0], params))
    return y.view(n)


def run_backward(backend, operation, dy, x_shape, read=None):
    """dx of an operation without parameters, an array (N, *x_shape); `read` is what backward reads besides dy: x or y."""
    n = len(dy)
    dx, read = backend.Buffer(n, x_shape, dy.dtype), None if read is None else backend.Buffer.holding(read)
    backend.run(operation.backward(n, dx, (), backend.Buffer.holding(dy), read, read, (), ()))
    return dx.view(n)


def run_backward_of(backend, operation, dy, x_shapes):
    """The dx of an operation of several inputs, a tuple of arrays (N, *x_shape)."""
    n = len(dy)
    dxs = tuple(backend.Buffer(n, shape, dy.dtype) for shape in x_shapes)
    backend.run(operation.backward(n, dxs, (), backend.Buffer.holding(dy), None, None, (), ()))
    return tuple(dx.view(n) for dx in dxs)


class LossOperation:
    """A loss of given arrays, and its gradient. Here nothing is checked: the public functions have done that.

    Parameters
    ----------
    x, t : array
        In PyTorch's shapes and, as all arrays, in the backend's memory, with any strides. Class indices are int64; an elementwise
        loss converts t to x's dtype.
    reduction : {"mean", "sum", "none"}
    weight, pos_weight : array of x's shape, or None
        Of an elementwise loss.
    weight, ignore_index, keep, share
        Of cross-entropy. `weight` has an element for each class, or is None. A class's target probability is keep * t + share;
        class indices stand for their one-hot rows.
    """

    def forward(self):
        """The loss: an array of x's dtype and of the shape that the reduction leaves, on the CPU a scalar where that is ()."""
        raise TypeError(f"{type(self).__name__}: a loss defines forward")

    def backward(self, dloss):
        """dx, for an upstream gradient of shape () or of the loss's shape."""
        raise TypeError(f"{type(self).__name__}: a loss defines backward")


def operations(package, path):
    """The operations of a backend by name. Every file of its package is imported, so a new one needs no line in an index."""
    modules = [importlib.import_module(f"{package}.{file.name}") for file in pkgutil.iter_modules(path)]
    return {name: value for module in modules for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Operation | LossOperation) and value.__module__ == module.__name__}
