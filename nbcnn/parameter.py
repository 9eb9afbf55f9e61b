"""Parameters, which are learned, and statistics, which layers keep: views of a model's flat vectors."""
import math

import numpy as np

from nbcnn.kernels.arguments import INT64, finite, flag, integer, ints, numeric
from nbcnn.kernels.backend import load_backend, on_device
from nbcnn.kernels.shown import shown


class ParameterVector:
    """The memory of a model: a vector of data, one of gradients, and one of counts. Each tensor is aligned to 64 bytes.

    `data` holds the parameters and behind them the statistics of floats, so that one pass over it averages a whole model. `grad`
    holds the gradients of the parameters, at the same places. The gaps are zero and stay zero, so one update may run over the whole
    vector. `counts` holds the number of training steps and the statistics of integers. `backend` is the one whose memory they are.
    """

    def __init__(self, parameters, dtype, statistics=()):
        self.backend, self.parameters, self.statistics = load_backend("cpu"), list(parameters), list(statistics)
        step = self.backend.ALIGNMENT // np.dtype(dtype).itemsize
        size, count, self.planned = 0, 1, 0
        for tensor in self.parameters:
            tensor.vector, tensor.start = self, size
            size += -(-tensor.size // step) * step
        self.grad = self.backend.allocate((size,), dtype)
        for tensor in self.statistics:
            tensor.vector = self
            if tensor.kind is None:
                tensor.start = size
                size += -(-tensor.size // step) * step
            else:
                tensor.start, count = count, count + tensor.size
        self.data, self.counts = self.backend.allocate((size,), dtype), self.backend.allocate((count,), np.int64)
        for tensor in self.statistics:
            tensor.set(np.full(tensor.shape, tensor.value))

    @property
    def count(self):
        """The number of parameters."""
        return len(self.parameters)

    @property
    def steps(self):
        """How many training steps were done, an array of one number that kernels read; one of a loss that is not finite is none."""
        return self.counts[:1]

    def move(self, backend):
        """Move the values to another backend's memory."""
        if backend is not self.backend:
            self.data, self.grad, self.counts = (backend.to_device(self.backend.to_host(vector))
                                                 for vector in (self.data, self.grad, self.counts))
            self.backend = backend

    def __reduce__(self):
        raise TypeError("parameters are copied or pickled with their model: copy.deepcopy(model); then make a new optimizer")


class Tensor:
    """What parameters and statistics have in common.

    Attributes
    ----------
    shape : tuple
        PyTorch's shape.
    data : array
        The values: a writable view in PyTorch's shape. Four axes (O, C, KH, KW) lie in memory as (O, KH, KW, C). For a model on a
        GPU it is a device array; `numpy()` and `set(values)` copy from and to both kinds.
    """

    def __init__(self, shape):
        self.shape = ints(shape, "shape", "a tuple of ints", 0)
        self.size = math.prod(self.shape)
        self.vector = self.start = None

    @property
    def stop(self):
        """Where it ends in its vector."""
        return self.start + self.size

    @property
    def flat(self):
        """The values in the order of memory, as the kernels take them."""
        return self._memory().data[self.start:self.stop]

    @property
    def data(self):
        return self.shaped(self.flat)

    @data.setter
    def data(self, values):
        self.set(values)

    def __array__(self, dtype=None, copy=None):
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.data[index]

    def __setitem__(self, index, values):
        self.data[index] = values

    def __getattr__(self, name):
        """Whatever else an array has: dtype, mean(), ..."""
        if name.startswith("_") or self.__dict__.get("vector") is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.data, name)

    def numpy(self):
        """A copy of the values as a NumPy array."""
        return self._memory().backend.to_host(self.data)

    def set(self, values):
        """Overwrite the values with an array of PyTorch's shape. Denormal numbers, which are slow to compute with, become 0."""
        values = numeric(values, "values", self.shape, f"that of the {type(self).__name__.lower()}")
        if not on_device(values):
            values = np.array(values, self.flat.dtype, order="C")
            flat, tiny = values.reshape(-1), np.finfo(values.dtype).tiny if values.dtype.kind == "f" else 0
            for start in range(0, flat.size if tiny else 0, 1 << 16):       # piece by piece, as the comparison needs memory
                part = flat[start:start + (1 << 16)]
                part[abs(part) < tiny] = 0
        self.write(self.flat, values)

    def shaped(self, flat):
        """A view in PyTorch's shape of a vector in the order of memory."""
        return self._memory().backend.unflat_weight(flat, self.shape) if self.shape else flat.reshape(())

    def write(self, flat, values):
        """Overwrite a vector in the order of memory with an array of PyTorch's shape."""
        self._memory().backend.write(self.shaped(flat), values)

    def _memory(self):
        if self.vector is None:
            kind = type(self).__name__.lower()
            raise RuntimeError(f"a {kind} has values once its layer was called or is part of a nbcnn.Sequential")
        return self.vector

    def __repr__(self):
        return f"{type(self).__name__}{self.shape if self.vector is None else f'({self.data!r})'}"


class Parameter(Tensor):
    """A tensor that is learned. Its layer makes it; the model that takes the layer gives it memory and initial values.

    Parameters
    ----------
    shape : tuple
    init : callable
        From a random generator and the shape to the initial values, as `nbcnn.init.uniform(fan_in)`.
    trainable : bool
        False for one that stays as it is: no gradient is computed for it.

    Attributes
    ----------
    data : float array
        The values, as of `Tensor`. Assigning an array copies its values.
    grad : float array or None
        dLoss/d(data), a writable view; None before the first backward and after zero_grad(). Unlike PyTorch's it is the same
        memory every time: copy what you need after the next step. Assigning an array copies its values, assigning None removes
        the gradient.
    trainable, requires_grad : bool
        Either name may be set between two steps.
    """

    def __init__(self, shape, init, trainable=True):
        super().__init__(shape)
        if not callable(init):
            raise TypeError("init: expected a function (rng, shape) -> array, as nbcnn.init.uniform(fan_in) gives one, got "
                            f"{shown(init)}")
        self.init, self._trainable, self.has_grad = init, flag(trainable, "trainable"), False

    @property
    def flat_grad(self):
        """The gradient in the order of memory; meaningful while `grad` is not None."""
        return self._memory().grad[self.start:self.stop]

    @property
    def grad(self):
        return self.shaped(self.flat_grad) if self.has_grad else None

    @grad.setter
    def grad(self, value):
        if value is not None:
            self.write(self.flat_grad, numeric(value, "grad", self.shape, "that of the parameter"))
        self.has_grad = value is not None

    @property
    def trainable(self):
        return self._trainable

    @trainable.setter
    def trainable(self, value):
        value = flag(value, "trainable")
        if value != self._trainable:
            self._trainable = value
            if not value:
                self.has_grad = False
            if self.vector is not None:
                self.vector.planned += 1        # what schedulers have planned for backward is not so any more

    requires_grad = trainable


class Statistic(Tensor):
    """A tensor that a layer keeps and no gradient changes, PyTorch's buffer: a running mean, a count.

    Set as an attribute of a layer it is in the layer's `buffers`, and in the model's state_dict and checkpoints.

    Parameters
    ----------
    shape : tuple
    value : float or int
        What it begins with.
    dtype : np.int64, optional
        By default the model's.
    """

    def __init__(self, shape, value, dtype=None):
        super().__init__(shape)
        if dtype is not None and dtype is not np.int64:
            raise ValueError(f"dtype: expected None, for the model's, or np.int64, got {shown(dtype)}")
        self.kind = None if dtype is None else np.dtype(dtype)
        self.value = finite(value, "value") if dtype is None else integer(value, "value", -INT64, INT64)

    @property
    def flat(self):
        vector = self._memory()
        return (vector.data if self.kind is None else vector.counts)[self.start:self.stop]
