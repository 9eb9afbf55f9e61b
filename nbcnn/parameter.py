"""Parameters: views of two flat vectors, data and gradient."""
import math

import numpy as np

from nbcnn.kernels.arguments import numeric
from nbcnn.kernels.backend import load_backend, on_device


class ParameterVector:
    """The memory of a model's parameters: one vector of data and one of gradients. Each parameter is aligned to 64 bytes.

    The gaps between parameters are zero and stay zero, so one update may run over the whole vector. `backend` is the one whose
    memory holds the vectors.
    """

    def __init__(self, parameters, dtype):
        self.backend = load_backend("cpu")
        step = self.backend.ALIGNMENT // np.dtype(dtype).itemsize
        size, self.count = 0, len(parameters)
        for parameter in parameters:
            parameter.vector, parameter.start = self, size
            size += -(-parameter.size // step) * step
        self.data, self.grad = self.backend.allocate((size,), dtype), self.backend.allocate((size,), dtype)

    def move(self, backend):
        """Move the values to another backend's memory."""
        if backend is not self.backend:
            self.data, self.grad = (backend.to_device(self.backend.to_host(vector)) for vector in (self.data, self.grad))
            self.backend = backend

    def __reduce__(self):
        raise TypeError("parameters are copied or pickled with their model: copy.deepcopy(model); then make a new optimizer")


class Parameter:
    """A tensor that is learned. Its layer makes it; the model that takes the layer gives it memory and initial values.

    Attributes
    ----------
    shape : tuple
        PyTorch's shape.
    data : float array
        The values: a writable view in PyTorch's shape. Four axes (O, C, KH, KW) lie in memory as (O, KH, KW, C). For a model on a
        GPU, data and grad are device arrays; `numpy()` and `set(values)` copy from and to both kinds.
    grad : float array or None
        dLoss/d(data), a writable view; None before the first backward and after zero_grad(). Unlike PyTorch's it is the same
        memory every time: copy what you need after the next step. Assigning an array copies its values, assigning None removes
        the gradient. Assigning an array to `data` copies its values, too.
    """

    def __init__(self, shape, fan_in):
        self.shape, self.size, self.fan_in = tuple(shape), math.prod(shape), fan_in
        self.vector = self.start = None
        self.has_grad = False

    @property
    def stop(self):
        """Where the parameter ends in its vector."""
        return self.start + self.size

    @property
    def flat(self):
        """The values in the order of memory, as the kernels take them."""
        return self._memory().data[self.start:self.stop]

    @property
    def flat_grad(self):
        """The gradient in the order of memory; meaningful while `grad` is not None."""
        return self._memory().grad[self.start:self.stop]

    @property
    def data(self):
        return self.shaped(self.flat)

    @data.setter
    def data(self, values):
        self.set(values)

    @property
    def grad(self):
        return self.shaped(self.flat_grad) if self.has_grad else None

    @grad.setter
    def grad(self, value):
        if value is not None:
            self.write(self.flat_grad, numeric(value, "grad", self.shape, "that of the parameter"))
        self.has_grad = value is not None

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
        if name.startswith("_") or self.vector is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.data, name)

    @property
    def requires_grad(self):
        """Always True: backward computes every gradient."""
        return True

    @requires_grad.setter
    def requires_grad(self, value):
        if not value:
            raise ValueError("requires_grad: expected True, as every parameter gets a gradient, got False; leave one that is not "
                             "to change out of the optimizer: nbcnn.SGD([p for p in model.parameters() if p is not this], lr=...)")

    def numpy(self):
        """A copy of the values as a NumPy array."""
        return self._memory().backend.to_host(self.data)

    def set(self, values):
        """Overwrite the values with an array of PyTorch's shape. Denormal numbers, which are slow to compute with, become 0."""
        values = numeric(values, "values", self.shape, "that of the parameter")
        if not on_device(values):
            values = np.array(values, self.flat.dtype, order="C")
            flat, tiny = values.reshape(-1), np.finfo(values.dtype).tiny
            for start in range(0, flat.size, 1 << 16):      # piece by piece, as the comparison needs memory
                part = flat[start:start + (1 << 16)]
                part[abs(part) < tiny] = 0
        self.write(self.flat, values)

    def shaped(self, flat):
        """A view in PyTorch's shape of a vector in the order of memory."""
        return self._memory().backend.unflat_weight(flat, self.shape)

    def write(self, flat, values):
        """Overwrite a vector in the order of memory with an array of PyTorch's shape."""
        self._memory().backend.write(self.shaped(flat), values)

    def _memory(self):
        if self.vector is None:
            raise RuntimeError("a parameter has values once its layer was called or is part of a nbcnn.Sequential")
        return self.vector

    def __repr__(self):
        return f"Parameter{self.shape}" if self.vector is None else f"Parameter({self.data!r})"
