"""What a backend is: the names that the rest of nbcnn uses, the same on every device.

`nbcnn.kernels.cpu` and `nbcnn.kernels.cuda` are such namespaces; `backend.load_backend` gives one by its name. "Array" here is what
the backend's kernels take: NumPy's on the CPU, Numba's device arrays on a GPU. tests/test_contract.py holds both to all of this.
"""
from typing import Protocol


class Buffer(Protocol):
    """Activations or gradients of up to `batch` samples, in the order that the backend's kernels like.

    Parameters
    ----------
    batch : int
    shape : tuple
        (C, H, W) of an image, or (F,) of a vector.
    dtype : dtype
    array : flat array, optional
        Memory to share, of `elements` numbers that lie in the same order. By default new memory, of zeros.

    Attributes
    ----------
    shape : tuple
    array : flat array
    """

    def __init__(self, batch, shape, dtype, array=None): ...

    @classmethod
    def elements(cls, batch, shape):
        """How many numbers such a buffer has."""

    @classmethod
    def holding(cls, x):
        """A buffer of the values of x (n, C, H, W) or (n, F), whatever its strides. To be read only: it may share x's memory."""

    def set(self, samples):
        """Overwrite the first samples with an array in PyTorch's shape."""

    def view(self, n):
        """The first n samples in PyTorch's shape: a view of the buffer's memory, which `write` can write."""


class Gradients(Protocol):
    """Where the gradients of some parameters go that are not a model's.

    An operation's backward takes `targets` as dparams. When its calls and then `calls` have run, `arrays` hold the gradients, flat.

    Parameters
    ----------
    operation : Operation
    n : int
        Samples.
    sizes : sequence of ints
        Elements of each parameter.
    """

    def __init__(self, operation, n, sizes, dtype): ...


class Partials(Protocol):
    """Where the gradients of a model's parameters go.

    Parameters
    ----------
    vector : ParameterVector
    parts : dict
        From each Parameter to a function: of how many partial sums its gradient is made for n samples.
    batch : int
        The most samples.
    """

    def __init__(self, vector, parts, batch): ...

    def target(self, parameter):
        """What an operation takes in dparams."""

    def sum(self, n, add):
        """The calls that end a backward pass of n samples; `add` are the parameters whose gradients were added to."""


class Backend(Protocol):
    """The namespace. Operations are classes that make an `operation.Operation`; shapes are those of one sample.

    Attributes
    ----------
    device : str
    ALIGNMENT : int
        Bytes on which each parameter begins in a vector of parameters.
    """
    Buffer, Gradients, Partials = Buffer, Gradients, Partials

    def require():
        """Raise RuntimeError where kernels cannot run."""

    def compile_calls(calls):
        """Compile what these calls need, if that is faster than to do it when they are made."""

    def run(calls):
        """Make these calls in order."""

    # ---- memory

    def allocate(shape, dtype):
        """An array of zeros, aligned as kernels like it."""

    def to_device(array):
        """A copy of a NumPy array in memory of this backend."""

    def to_host(array):
        """An array as a NumPy array of its own, in C order."""

    def place(array):
        """An array in memory of this backend: itself where it lies there already."""

    def copy_of(array):
        """A copy of an array of this backend."""

    def write(array, values):
        """Overwrite an array, of any strides, with values of its shape or ones that are spread over it."""

    def copy_call(y, x, n):
        """The call that copies the first n samples of a Buffer to another one of the same shape."""

    def add_call(y, a, b, n):
        """The call that makes y the sum of a and b, in the first n samples of Buffers of one shape; y may be a or b."""

    def flat_weight(w):
        """Weights (O, C, ...) in the kernels' order (O, ..., C), flat."""

    def unflat_weight(flat, shape):
        """Weights in the kernels' order as a view in PyTorch's shape (O, C, ...)."""

    # ---- operations

    def Conv2d(x_shape, y_shape, kernel_size, stride, padding, dilation, dtype): ...
    def Conv2dDepthwise(x_shape, y_shape, kernel_size, stride, padding, dilation, dtype): ...
    def Conv2dGroups(x_shape, y_shape, kernel_size, stride, padding, dilation, groups, dtype): ...
    def Conv2dMaxPool2d(x_shape, conv_shape, kernel_size, padding, pool_size, relu, dtype): ...
    def MaxPool2d(x_shape, kernel_size, stride, padding, dilation, y_shape, dtype): ...
    def AvgPool2d(x_shape, kernel_size, stride, padding, count_include_pad, divisor_override, y_shape, dtype): ...
    def AdaptiveAvgPool2d(x_shape, y_shape, dtype): ...
    def Flatten(x_shape, dtype): ...
    def Linear(x_shape, y_shape, dtype): ...
    def Activation(kernels, shape, options, dtype): ...
    def Add(shapes, dtype): ...
    def Concat(x_shapes, dtype): ...
    def Identity(x_shape, dtype): ...
    def Dropout(shape, p, planes, dtype): ...
    def BatchNorm(shape, eps, momentum, activation, running, dtype): ...

    # ---- losses: an `operation.LossOperation`

    def L1Loss(x, t, reduction, weight=None, pos_weight=None): ...
    def MSELoss(x, t, reduction, weight=None, pos_weight=None): ...
    def BCELoss(x, t, reduction, weight=None, pos_weight=None): ...
    def BCEWithLogitsLoss(x, t, reduction, weight=None, pos_weight=None): ...
    def CrossEntropyLoss(x, t, reduction, weight, ignore_index, keep, share): ...

    def softmax_along(x, axis, log):
        """The softmax of x along an axis, or its logarithm."""

    # ---- what is around the layers

    def run_loss(loss, logits, targets, training):
        """The value of a `nbcnn.losses` loss, which float() makes a number of, and, in training, its gradient; else None."""

    def update(param, momentum_buffer, grad, lr, options, first):
        """A step of SGD on flat vectors, in place; options = (momentum, one_minus_dampening, weight_decay, has_decay, has_momentum,
        nesterov, maximize)."""

    def adam_update(param, exp_avg, exp_avg_sq, grad, rates, options):
        """A step of Adam on flat vectors, in place; rates and options as `kernels.adam.adam_rates` and `adam_options` give them."""

    def sum_of_squares(x):
        """The sum of the squares of a flat vector, a float64 with equal bits for any number of threads."""

    def multiply(x, factor):
        """x *= factor, in place, on a flat vector."""

    def move_average(slow, fast, decay):
        """slow = decay * slow + (1 - decay) * fast, in place, on flat vectors."""


class HostBackend(Backend, Protocol):
    """What only the CPU's backend has: activations in bfloat16, for a scheduler whose precision is "bf16".

    Attributes
    ----------
    BFloat16Buffer : class
        A Buffer whose dtype may be uint16, which holds bfloat16, with memory for whole tiles of samples.
    """
    BFloat16Buffer = Buffer

    def bfloat16():
        """A namespace of the same operations for values in bfloat16 or float32; each is told which, by `Operation.stored`."""

    def describe_bfloat16():
        """One line on what is bfloat16, and which unit of the processor multiplies it."""


class DeviceBackend(Backend, Protocol):
    """What only a GPU's backend has: for steps that need nothing from the host, which `steps.DeviceSteps` makes.

    Attributes
    ----------
    state : module
        `make_state()`: the numbers from which kernels learn which step it is.
    images : module
        `gather_call(...)`: the call that makes a batch of the images on the device. `gather(...)`: the same, at once.
    buffer, maxpool2d, sgd : modules
        `contiguous(x)`, `scatter(dy, argmax, x_shape)`, `overlap(a, b)`: what NumPy, or a kernel on its arrays, does on the CPU.

    Its Partials also have `update_and_gather(...)`: the calls that sum, update the parameters and make the next batch.
    """

    def unavailable():
        """Why no GPU can be used; "" where one can."""

    def describe():
        """The GPU in use, in words."""

    def synchronize():
        """Wait until all that was started is done."""

    def Graph(calls):
        """Calls that `launch()` starts together."""

    def as_device_array(value):
        """A device array of any library as one of this backend's, without a copy."""

    def empty(shape, dtype):
        """An array whose contents are undefined."""

    def loss_call(loss, value, dx, x, t, shape, state=None, batch=0, advance=False):
        """The call of a loss and its gradient."""

    def update_call(param, momentum_buffer, grad, lr, options, first, state):
        """The call of `update`, whose learning rate lies on the device."""
