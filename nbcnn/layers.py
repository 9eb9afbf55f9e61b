"""The layers: their parameters and initial values, their output shapes, and the operation of a backend that computes them.

A layer is a description. It holds no activations and computes nothing: the scheduler asks it for its operation, whose forward and
backward stand one under the other in `kernels/cpu/`. Shapes here are those of one sample, (C, H, W) or (F,).
"""
import contextlib
import inspect
import math
from types import MappingProxyType, ModuleType

import numpy as np

from nbcnn import init
from nbcnn.kernels.activations import GELUS, kernels_of
from nbcnn.kernels.arguments import (
    FLOATS,
    adaptive_size,
    conv_padding,
    conv_size,
    finite,
    flag,
    floats,
    fraction,
    integer,
    one_of,
    padding_before,
    pair,
    pair_or_none,
    pooled_size,
    rate,
    same_dtype,
    same_shape,
)
from nbcnn.kernels.backend import as_array, load_backend
from nbcnn.kernels.conv2d import convolution
from nbcnn.kernels.operation import run_forward
from nbcnn.kernels.shown import one_line, shown
from nbcnn.parameter import Parameter, ParameterVector, Statistic, Tensor

__all__ = [
    "Layer", "Activation",      # to derive one's own from; the others are the layers there are
    "Conv2d", "BatchNorm2d", "BatchNorm1d", "MaxPool2d", "AvgPool2d", "GlobalAvgPool2d", "AdaptiveAvgPool2d", "ReLU", "LeakyReLU",
    "Tanh", "Sigmoid", "GELU", "Flatten", "Linear", "Add", "Concat", "Scale", "Identity", "Dropout", "Dropout2d",
]

MOST_FUSED = 2      # layers that may be computed together with the one before them


class Layer:
    """What all layers have in common.

    Attributes
    ----------
    arguments : mapping
        The constructor's arguments, as a checkpoint stores them.
    weight, bias, ... : Parameter or None
        What is learned: a `nbcnn.Parameter` under any name. The operation gets their values as `params`, in the order in which the
        constructor sets them; a weight or bias set to None is None there. Its backward writes their gradients to `dparams`, or adds
        them where `add` says so; one that is None there is not wanted.
    inputs : int or None
        How many inputs it takes; None for two or more. With more than one, output_shape and operation get a tuple of shapes, and
        the operation's methods tuples of buffers as x and dx.
    seed : int
        For the initial values of a layer that is called before it is part of a model.
    """
    weight = bias = None
    inputs = 1
    seed, alone = 0, False      # `alone`: whether the parameters have values without a model
    arguments = MappingProxyType({})

    def __setattr__(self, name, value):
        own = vars(self)
        if isinstance(own.get(name), Tensor) and not isinstance(value, type(own[name])):
            kind = type(own[name]).__name__
            raise TypeError(f"{name}: expected a {kind}, got {one_line(type(value).__name__)}; write layer.{name}.set(array)")
        if isinstance(value, Parameter) or (value is None and name in ("weight", "bias")):
            own.setdefault("_learned", {})[name] = value
        super().__setattr__(name, value)

    @property
    def params(self):
        """The parameters in the order in which they were set, None for a weight or bias that is left out."""
        return tuple(vars(self).get("_learned", {}).values())

    @property
    def parameters(self):
        """The parameters by name."""
        return {name: p for name, p in vars(self).get("_learned", {}).items() if p is not None}

    @property
    def buffers(self):
        """The statistics by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Statistic)}

    def _keep(self, **arguments):
        """Keep the constructor's arguments, also as attributes."""
        self.arguments = arguments
        self.__dict__.update(arguments)

    def output_shape(self, shape):
        """The output shape for an input shape, of one sample; ValueError where the input does not fit."""
        raise TypeError(f"{type(self).__name__}: a layer defines output_shape(shape){self._forward_hint()}")

    def operation(self, backend, shape, dtype):
        """The backend's operation for inputs of the given shape."""
        raise TypeError(f"{type(self).__name__}: a layer defines operation(backend, shape, dtype){self._forward_hint()}")

    def _forward_hint(self):
        """What to write instead of a class with a forward that calls its layers, as in PyTorch."""
        return ", and no forward(x); a network of several layers is a nbcnn.Sequential of them" if hasattr(self, "forward") else ""

    def __call__(self, *inputs):
        """What the layer makes of a batch in evaluation, as a model of this layer alone gives it: to look at, not to train with.

        A layer that is part of no model gets its initial values at its first call, drawn from `seed`, in the dtype of the input, or
        in float32 where it holds bytes. A model that takes it later takes these values over.

        Parameters
        ----------
        *inputs : uint8 or float arrays (N, C, H, W) or (N, F)
            One; for a layer that takes several, floats.
        """
        from nbcnn.model import Sequential  # it imports this module
        arrays, name = [as_array(x, "x") for x in inputs], type(self).__name__
        if len(arrays) != self.inputs and (self.inputs is not None or len(arrays) < 2):
            raise TypeError(f"{name}: expected {self.inputs or 'two or more'} arrays, got {len(arrays)}")
        if self.inputs != 1:
            return self._of_several(arrays)
        x, tensors = arrays[0], [*self.parameters.values(), *self.buffers.values()]
        dtype = x.dtype if x.dtype in FLOATS else np.float32
        if any(tensor.vector is None for tensor in tensors):
            drawn = Sequential([(name, type(self)(**self.arguments))], seed=self.seed, dtype=dtype)
            ParameterVector(self.parameters.values(), drawn.dtype, self.buffers.values())
            for tensor, values in zip(tensors, drawn.tensors(), strict=True):
                tensor.set(values.data)
            self.alone = True
        dtype = next((p.data.dtype for p in self.parameters.values()), dtype)
        state = {f"{name}.{key}": tensor.data for key, tensor in (self.parameters | self.buffers).items()}
        return Sequential([(name, type(self)(**self.arguments))], state=state, dtype=dtype).predict(x)

    def _of_several(self, arrays):
        """What the layer makes of several inputs."""
        x, *others = arrays = [floats(array, "x") for array in arrays]
        for array in others:
            same_dtype(array, "x", x, "the first input")
            same_shape(array[:, :0], "x", (len(x), 0, *array.shape[2:]), "as many samples as the first input")
        backend, shapes = load_backend("cpu"), tuple(array.shape[1:] for array in arrays)
        return run_forward(backend, self.operation(backend, shapes, x.dtype), arrays, self.output_shape(shapes))

    def fuse(self, following, shape):
        """A layer that computes this one and some that follow it, in one kernel.

        Parameters
        ----------
        following : list of (name, Layer)
            The next MOST_FUSED layers, or fewer at the end.
        shape : tuple
            The shape of this layer's input.

        Returns
        -------
        layer : Layer or None
        count : int
            How many of `following` it computes.
        reason : str
            Why, or why not; may be "".
        """
        return None, 0, ""

    def flop(self, shape):
        """Floating-point operations of forward for one sample. A multiplication with an addition counts as two."""
        return 0

    def window_cells(self, shape):
        """How many cells all pooling windows of one channel read together."""
        return 0

    def __repr__(self):
        defaults = {k: p.default for k, p in inspect.signature(type(self)).parameters.items()}
        shown = [f"{k}={v[0] if isinstance(v, tuple) and v[0] == v[1] else v}" for k, v in self.arguments.items()
                 if v not in (defaults[k], (defaults[k],) * 2)]
        return f"{type(self).__name__}({', '.join(shown)})"


class Conv2d(Layer):
    """2-D convolution; see `nbcnn.kernels.conv2d_forward`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or pair of ints
    padding : int or pair of ints, or {"same", "valid"}
    groups : int
        A divisor of the numbers of channels; with in_channels groups and outputs the convolution is depthwise.
    bias : bool

    Notes
    -----
    Initial values, weight and bias alike: uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), fan_in = in_channels/groups*KH*KW, as
    torch.nn.Conv2d.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        stride = pair(stride, "stride", 1)
        self._keep(in_channels=integer(in_channels, "in_channels", 1), out_channels=integer(out_channels, "out_channels", 1),
                   kernel_size=pair(kernel_size, "kernel_size", 1), stride=stride, padding=conv_padding(padding, stride),
                   dilation=pair(dilation, "dilation", 1), groups=integer(groups, "groups", 1), bias=flag(bias, "bias"))
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"groups: expected a divisor of in_channels {self.in_channels} and of out_channels "
                             f"{self.out_channels}, got {self.groups}")
        fan_in = self.in_channels // self.groups * math.prod(self.kernel_size)
        self.weight = Parameter((self.out_channels, self.in_channels // self.groups, *self.kernel_size), init.uniform(fan_in))
        self.bias = Parameter((self.out_channels,), init.uniform(fan_in)) if self.bias else None

    def output_shape(self, shape):
        _require_images(shape, self.in_channels)
        return self.out_channels, *conv_size(shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, "input")

    def operation(self, backend, shape, dtype):
        return convolution(backend, shape, self.output_shape(shape), self.kernel_size, self.stride, self.padding, self.dilation,
                           self.groups, dtype)

    def fuse(self, following, shape):
        kinds = [type(layer) for _, layer in following[:MOST_FUSED]]
        relu = ReLU in kinds and MaxPool2d in kinds
        if MaxPool2d not in kinds[:1 + relu]:
            return None, 0, "no max-pooling follows"
        name, pool = following[kinds.index(MaxPool2d)]
        _, OH, OW = self.output_shape(shape)
        if self.stride != (1, 1) or self.dilation != (1, 1):
            return None, 0, "the convolution is strided or dilated"
        if self.groups > 1:
            return None, 0, "the convolution is one of groups"
        if pool.stride != pool.kernel_size or pool.dilation != (1, 1):
            return None, 0, f"{name}'s windows do not lie side by side"
        if pool.padding != (0, 0) or pool.output_shape((1, OH, OW)) != (1, OH // pool.stride[0], OW // pool.stride[1]):
            return None, 0, f"{name}'s windows reach outside"
        if math.prod(pool.kernel_size) > 255 or self.kernel_size[1] + pool.kernel_size[1] > 25:
            return None, 0, f"{name}'s windows or the kernels are too wide"
        return ConvPool(self, pool, relu), 1 + relu, "a backward pass at the pools' maxima" + " that a ReLU lets through" * relu

    def flop(self, shape):
        return 2 * self.weight.size * math.prod(self.output_shape(shape)[1:])


class BatchNorm2d(Layer):
    """Gives each channel of images the mean and variance that its bias and weight say; see `nbcnn.kernels.batchnorm_forward`.

    In training the mean and variance of the batch are taken out, in evaluation the running ones: after each step
    running = (1 - momentum)*running + momentum*batch, for running_var with the batch's unbiased variance. A step whose loss is not
    finite leaves them alone.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        What is added to the variance.
    momentum : float or None
        In [0, 1]. None for 1/num_batches_tracked: the running statistics are the mean of all batches'.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Whether there are running statistics. Else those of the batch are taken in evaluation, too.

    Notes
    -----
    At first the weight is 1, the bias 0, running_mean 0, running_var 1, as in torch.nn.BatchNorm2d.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True):
        self._keep(num_features=integer(num_features, "num_features", 1), eps=rate(eps, "eps", np.float32),
                   momentum=None if momentum is None else fraction(momentum, "momentum"), affine=flag(affine, "affine"),
                   track_running_stats=flag(track_running_stats, "track_running_stats"))
        shape = (self.num_features,)
        self.weight = Parameter(shape, init.constant(1)) if self.affine else None
        self.bias = Parameter(shape, init.constant(0)) if self.affine else None
        if self.track_running_stats:
            self.running_mean, self.running_var = Statistic(shape, 0), Statistic(shape, 1)
            self.num_batches_tracked = Statistic((), 0, np.int64)

    def output_shape(self, shape):
        _require_images(shape, self.num_features)
        return shape

    def operation(self, backend, shape, dtype, activation=None):
        running = tuple(statistic.flat for statistic in self.buffers.values()) or None
        return backend.BatchNorm(shape, self.eps, self.momentum, activation, running, dtype)

    def fuse(self, following, shape):
        if not following or not isinstance(following[0][1], Activation):
            return None, 0, "no activation follows"
        name, activation = following[0]
        if not isinstance(activation.function, str):
            return None, 0, f"{name}'s kernels are not nbcnn's"
        return BatchNormActivation(self, activation), 1, "one pass forward, two backward, behind the statistics"


class BatchNorm1d(BatchNorm2d):
    """As `BatchNorm2d`, of vectors.

    Parameters
    ----------
    num_features : int
    eps, momentum, affine, track_running_stats
        As of `BatchNorm2d`.
    """

    def output_shape(self, shape):
        _require_vectors(shape, self.num_features)
        return shape


class _Pool(Layer):
    """Pooling in windows of kernel_size."""
    dilation = 1, 1

    def _keep(self, kernel_size, stride, padding, **arguments):
        super()._keep(kernel_size=pair(kernel_size, "kernel_size", 1), stride=None if stride is None else pair(stride, "stride", 1),
                      padding=pair(padding, "padding", 0), **arguments)
        self.stride = self.stride or self.kernel_size

    def output_shape(self, shape):
        _require_images(shape)
        return (shape[0],
                *pooled_size(shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, "input"))

    def window_cells(self, shape):
        return math.prod(o * min(k, i) for o, k, i in zip(self.output_shape(shape)[1:], self.kernel_size, shape[1:], strict=True))


class MaxPool2d(_Pool):
    """The largest value of each window; see `nbcnn.kernels.maxpool2d_forward`.

    Parameters
    ----------
    kernel_size, padding, dilation : int or pair of ints
    stride : int or pair of ints, optional
        The kernel size by default.
    ceil_mode : bool
        Whether there is a last window that begins inside the input and ends outside.
    """

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        self._keep(kernel_size, stride, padding, dilation=pair(dilation, "dilation", 1), ceil_mode=flag(ceil_mode, "ceil_mode"))

    def operation(self, backend, shape, dtype):
        return backend.MaxPool2d(shape, self.kernel_size, self.stride, self.padding, self.dilation, self.output_shape(shape), dtype)


class AvgPool2d(_Pool):
    """The mean of each window; see `nbcnn.kernels.avgpool2d_forward`.

    Parameters
    ----------
    kernel_size, padding : int or pair of ints
    stride : int or pair of ints, optional
        The kernel size by default.
    ceil_mode : bool
        Whether there is a last window that begins inside the input and ends outside.
    count_include_pad : bool
        Whether the divisor counts cells of the padding.
    divisor_override : int, optional
        The divisor for all windows.
    """

    def __init__(self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        self._keep(kernel_size, stride, padding, ceil_mode=flag(ceil_mode, "ceil_mode"),
                   count_include_pad=flag(count_include_pad, "count_include_pad"),
                   divisor_override=None if divisor_override is None else integer(divisor_override, "divisor_override", 1))

    def operation(self, backend, shape, dtype):
        return backend.AvgPool2d(shape, self.kernel_size, self.stride, self.padding, self.count_include_pad, self.divisor_override,
                                 self.output_shape(shape), dtype)


class GlobalAvgPool2d(Layer):
    """The mean of each channel: an `AvgPool2d` whose window is the whole image; see `nbcnn.kernels.global_avgpool2d_forward`."""

    def output_shape(self, shape):
        return AvgPool2d(shape[1:] if len(shape) == 3 else 1).output_shape(shape)

    def operation(self, backend, shape, dtype):
        return AvgPool2d(shape[1:]).operation(backend, shape, dtype)


class AdaptiveAvgPool2d(Layer):
    """The mean of each of so many windows that cover the image; see `nbcnn.kernels.adaptive_avgpool2d_forward`.

    Parameters
    ----------
    output_size : int or pair of ints
        Along H and along W; None in a pair for the input's own size.
    """

    def __init__(self, output_size):
        self._keep(output_size=pair_or_none(output_size, "output_size", 1))

    def output_shape(self, shape):
        _require_images(shape)
        return shape[0], *adaptive_size(shape[1:], self.output_size, "input")

    def operation(self, backend, shape, dtype):
        return backend.AdaptiveAvgPool2d(shape, self.output_shape(shape), dtype)

    def window_cells(self, shape):
        # Side by side the windows of an axis cover it once; two that share a pixel read it twice, unless they meet between pixels.
        axes = zip(shape[1:], self.output_shape(shape)[1:], strict=True)
        return math.prod(size + count - math.gcd(size, count) for size, count in axes)


class Activation(Layer):
    """A function of each element. A subclass says which.

    Attributes
    ----------
    function : str or mapping
        "tanh" stands for the kernels tanh_forward and tanh_backward in the activations.py of each device. A function of your own
        is a mapping of devices to kernels, {"cpu": (forward, backward)}.
    options : tuple of numbers
        What both kernels take between the arrays and `count`.
    """
    function, options = None, ()

    def output_shape(self, shape):
        return shape

    def operation(self, backend, shape, dtype):
        return backend.Activation(kernels_of(self.function, backend), shape, self.options, dtype)


class ReLU(Activation):
    """max(x, 0); see `nbcnn.kernels.relu_forward`."""
    function = "relu"


class LeakyReLU(Activation):
    """x where x is positive, negative_slope*x elsewhere; see `nbcnn.kernels.leaky_relu_forward`.

    Parameters
    ----------
    negative_slope : float
    """
    function = "leaky_relu"

    def __init__(self, negative_slope=0.01):
        self._keep(negative_slope=finite(negative_slope, "negative_slope"))
        self.options = (self.negative_slope,)


class Tanh(Activation):
    """The hyperbolic tangent; see `nbcnn.kernels.tanh_forward`."""
    function = "tanh"


class Sigmoid(Activation):
    """1/(1 + e^-x); see `nbcnn.kernels.sigmoid_forward`."""
    function = "sigmoid"


class GELU(Activation):
    """x Phi(x), where Phi is the normal distribution; see `nbcnn.kernels.gelu_forward`.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" for the approximation with the hyperbolic tangent.
    """

    def __init__(self, approximate="none"):
        self._keep(approximate=one_of(approximate, "approximate", GELUS))
        self.function = GELUS[approximate]


class Scale(Activation):
    """factor*x, by a number that is not learned; see `nbcnn.kernels.scale_forward`.

    Parameters
    ----------
    factor : float
    """
    function = "scale"

    def __init__(self, factor):
        self._keep(factor=finite(factor, "factor"))
        self.options = (self.factor,)


class Identity(Layer):
    """x itself, in the same memory: the other way around a block of layers that an `Add` joins, for one."""

    def output_shape(self, shape):
        return shape

    def operation(self, backend, shape, dtype):
        return backend.Identity(shape, dtype)


class Dropout(Layer):
    """In training each element is 0 with probability p, else 1/(1 - p) times as large; see `nbcnn.kernels.dropout_forward`.

    In evaluation all are as they are. Which are 0 depends on the model's seed, the layer's place and the step, so a run that is
    resumed draws what it would have drawn.

    Parameters
    ----------
    p : float
        In [0, 1].
    """
    planes = False

    def __init__(self, p=0.5):
        self._keep(p=fraction(p, "p"))

    def output_shape(self, shape):
        return shape

    def operation(self, backend, shape, dtype):
        return backend.Dropout(shape, self.p, self.planes, dtype)


class Dropout2d(Dropout):
    """As `Dropout`, of whole planes of images; see `nbcnn.kernels.dropout2d_forward`.

    Parameters
    ----------
    p : float
        In [0, 1].
    """
    planes = True

    def output_shape(self, shape):
        _require_images(shape)
        return shape


class ConvPool(Layer):
    """A convolution, max-pooling and perhaps ReLU in one: `Conv2d.fuse` makes it. Its parameters are the convolution's."""

    def __init__(self, conv, pool, relu):
        self.conv, self.pool, self.relu = conv, pool, relu
        self.weight, self.bias = conv.weight, conv.bias

    def output_shape(self, shape):
        return self.pool.output_shape(self.conv.output_shape(shape))

    def operation(self, backend, shape, dtype):
        padding = padding_before(self.conv.padding, self.conv.kernel_size, self.conv.dilation)
        return backend.Conv2dMaxPool2d(shape, self.conv.output_shape(shape), self.conv.kernel_size, padding, self.pool.kernel_size,
                                       self.relu, dtype)

    def flop(self, shape):
        return self.conv.flop(shape)


class BatchNormActivation(Layer):
    """A batch normalization and an activation in one: `BatchNorm2d.fuse` makes it. Its parameters are the normalization's."""

    def __init__(self, norm, activation):
        self.norm, self.activation = norm, activation
        self.weight, self.bias = norm.weight, norm.bias

    def output_shape(self, shape):
        return self.norm.output_shape(shape)

    def operation(self, backend, shape, dtype):
        return self.norm.operation(backend, shape, dtype, (self.activation.function, self.activation.options))


class Flatten(Layer):
    """Images (N, C, H, W) as vectors (N, C*H*W), channel by channel as in PyTorch."""

    def output_shape(self, shape):
        return (math.prod(shape),)

    def operation(self, backend, shape, dtype):
        return backend.Flatten(shape, dtype)


class Add(Layer):
    """The sum of two or more inputs of the same shape; see `nbcnn.kernels.add_forward`."""
    inputs = None

    def output_shape(self, shapes):
        for shape in shapes[1:]:
            if shape != shapes[0]:
                raise ValueError(f"expected inputs of the same shape, got {_batch(shapes[0])} and {_batch(shape)}")
        return shapes[0]

    def operation(self, backend, shapes, dtype):
        return backend.Add(shapes, dtype)


class Concat(Layer):
    """The channels of two or more inputs, in their order; see `nbcnn.kernels.concat_forward`."""
    inputs = None

    def output_shape(self, shapes):
        for shape in shapes[1:]:
            if shape[1:] != shapes[0][1:]:
                raise ValueError(f"expected inputs of the same shape but for the channels, got {_batch(shapes[0])} and "
                                 f"{_batch(shape)}")
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def operation(self, backend, shapes, dtype):
        return backend.Concat(shapes, dtype)


class Linear(Layer):
    """y = x W^T + b; see `nbcnn.kernels.linear_forward`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool

    Notes
    -----
    Initial values, weight and bias alike: uniform(-1/sqrt(in_features), 1/sqrt(in_features)), as torch.nn.Linear.
    """

    def __init__(self, in_features, out_features, bias=True):
        self._keep(in_features=integer(in_features, "in_features", 1), out_features=integer(out_features, "out_features", 1),
                   bias=flag(bias, "bias"))
        self.weight = Parameter((self.out_features, self.in_features), init.uniform(self.in_features))
        self.bias = Parameter((self.out_features,), init.uniform(self.in_features)) if self.bias else None

    def output_shape(self, shape):
        _require_vectors(shape, self.in_features)
        return (self.out_features,)

    def operation(self, backend, shape, dtype):
        return backend.Linear(shape, self.output_shape(shape), dtype)

    def flop(self, shape):
        return 2 * self.weight.size


def require_network(model):
    """Raise TypeError unless this is a model; for a class of one's own the message says what to write instead."""
    def is_network(value):
        with contextlib.suppress(Exception):        # of an object's own attributes
            return all(hasattr(value, name) for name in ("layers", "vector", "shapes")) and not isinstance(value, type)
        return False
    if is_network(model):
        return
    inside = vars(model) if hasattr(model, "__dict__") and not isinstance(model, type | ModuleType) else {}
    models = [name for name, value in inside.items() if is_network(value)]
    layers = [name for name, value in inside.items() if isinstance(value, Layer)]
    kind = type(model).__name__
    if isinstance(model, type):
        hint = f"; write {model.__name__}() for an object of the class"
    elif isinstance(model, Layer):
        hint = f"; write nbcnn.Sequential([{model!r}])"
    elif models and kind == "EMA":
        hint = "; in a block `with ema.weights():` the averaged weights are in the model that it was made for"
    elif models:
        hint = f"; give the model that it holds, as {kind.lower()}.{models[0]}"
    elif layers:
        rows = ", ".join(f'("{name}", {inside[name]!r})' for name in layers)
        hint = f"; layers run in the order of a list, without a forward of one's own: write nbcnn.Sequential([{rows}])"
    else:
        hint = ""
    got = shown(model) if isinstance(model, type) else kind
    raise TypeError(one_line(f"model: expected a nbcnn.Sequential, got {got}{hint}", 1000))


def _require_images(shape, channels="C"):
    """Raise ValueError unless samples of this shape are images, of so many channels."""
    if len(shape) != 3 or channels not in ("C", shape[0]):
        raise ValueError(f"expected images (N, {channels}, H, W), got {_batch(shape)}")


def _require_vectors(shape, features):
    """Raise ValueError unless samples of this shape are vectors of so many features."""
    if tuple(shape) != (features,):
        hint = "; a Flatten layer makes vectors of images" if len(shape) == 3 else ""
        raise ValueError(f"expected vectors (N, {features}), got {_batch(shape)}{hint}")


def _batch(shape):
    """The shape of a batch of samples of this shape."""
    return one_line(f"({', '.join(map(str, ('N', *shape)))})")
