"""Stochastic gradient descent, and learning rates that change from step to step.

A schedule is a function from the number of a step, counted from 0, to its learning rate. The schedules agree with the classes of
torch.optim.lr_scheduler that are stepped once per batch.

    learning_rate = nbcnn.optim.cosine(0.1, total=1000)
    for k, (images, labels) in enumerate(batches):
        optimizer.lr = learning_rate(k)
        step.train_step(images, labels, optimizer)
"""
import functools
import math
from collections.abc import Mapping

from nbcnn.instead import say_instead
from nbcnn.kernels.arguments import INT64, flag, fraction, instance, integer, nesterov_fits, numeric, rate, sequence
from nbcnn.kernels.shown import shown
from nbcnn.parameter import Parameter

RECIPE = dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)      # what `nbcnn.fit` and `nbcnn train` begin with


class SGD:
    """Stochastic gradient descent; `nbcnn.kernels.sgd_step` says what an update is.

    Parameters
    ----------
    params : list of Parameter
        All parameters of one model, or some of them.
    lr : float
        Learning rate. The attribute `lr` may be set before every step.
    momentum, dampening, weight_decay : float
    nesterov, maximize : bool

    Raises
    ------
    TypeError
        When `params` holds something else, or a rate is no number.
    ValueError
        When `params` is empty, holds a parameter twice or mixes models; when a rate is negative or not finite; when nesterov comes
        without momentum or with dampening.

    Notes
    -----
    A parameter whose grad is None stays as it is, and so does its momentum. One call of the kernel updates all parameters that lie
    side by side in memory, as long as all of them have momentum or all have none yet: for a whole model that is one call.

    Source: PyTorch's torch.optim.SGD.
    """

    def __init__(self, params, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
        if callable(getattr(params, "parameters", None)):
            raise TypeError("params: expected a list of nbcnn Parameters, got a model; write model.parameters()")
        self.params = sequence(params, "params", "a list of nbcnn Parameters")
        if not self.params:
            raise ValueError("params: expected at least one Parameter, got none")
        for parameter in self.params:
            instance(parameter, "params", Parameter, "nbcnn Parameters")
        self.vector = self.params[0].vector
        if self.vector is None or any(parameter.vector is not self.vector for parameter in self.params):
            raise ValueError("params: expected the Parameters of one nbcnn.Sequential; use one optimizer per model")
        if len(set(map(id, self.params))) < len(self.params):
            raise ValueError("params: expected each Parameter once, got one twice")
        self.lr, dtype = lr, self.vector.data.dtype
        self.momentum, self.dampening = rate(momentum, "momentum", dtype), rate(dampening, "dampening", dtype)
        self.weight_decay = rate(weight_decay, "weight_decay", dtype)
        self.nesterov, self.maximize = flag(nesterov, "nesterov"), flag(maximize, "maximize")
        nesterov_fits(self.nesterov, self.momentum, self.dampening)
        cast = dtype.type
        self._options = (cast(self.momentum), cast(1 - self.dampening), cast(self.weight_decay), self.weight_decay > 0,
                         self.momentum > 0, self.nesterov, self.maximize)
        # The momentum lies on the device of the parameters, in the same order; without momentum it is empty.
        self._backend = self.vector.backend
        self._buffer = self._backend.allocate(self.vector.data.shape if self.momentum > 0 else (0,), cast)
        self._has_momentum = set()
        self._updates, self._updates_for = [], None

    @property
    def lr(self):
        return self._lr

    @lr.setter
    def lr(self, value):
        self._lr = rate(value, "lr")

    def zero_grad(self):
        """Set every grad to None."""
        for parameter in self.params:
            parameter.has_grad = False

    def step(self):
        """Update the parameters that have a gradient."""
        self.follow()
        have_grad = [parameter for parameter in self.params if parameter.has_grad]
        if have_grad != self._updates_for:
            self._updates, self._updates_for = self.updates(have_grad), have_grad
        for data, buffer, grad, first, options in self._updates:
            self._backend.update(data, buffer, grad, self._lr, options, first)
        self.updated(have_grad)

    def follow(self):
        """Move the momentum to the device of the parameters: `Sequential.to` moves only these."""
        if self._backend is not self.vector.backend:
            self._buffer = self.vector.backend.to_device(self._backend.to_host(self._buffer))
            self._backend, self._updates_for = self.vector.backend, None

    def update_of_all(self):
        """(momentum, options) for an update of the whole vector; None while a parameter is left out or has no momentum yet."""
        self.follow()
        whole = len(self.params) == self.vector.count and (self.momentum == 0 or len(self._has_momentum) == self.vector.count)
        return (self._buffer, self._options) if whole else None

    def updates(self, params=None):
        """(data, momentum, gradient, first, options) for each run of parameters in memory that all have momentum or do not."""
        step = self._backend.ALIGNMENT // self.vector.data.dtype.itemsize
        runs = []       # [start, stop, first]
        for parameter in sorted(self.params if params is None else params, key=lambda parameter: parameter.start):
            first = self.momentum > 0 and parameter not in self._has_momentum
            if runs and runs[-1][2] == first and parameter.start == -(-runs[-1][1] // step) * step:
                runs[-1][1] = parameter.stop
            else:
                runs.append([parameter.start, parameter.stop, first])
        return [(self.vector.data[start:stop], self._buffer[start:stop] if self.momentum > 0 else self._buffer,
                 self.vector.grad[start:stop], first, self._options) for start, stop, first in runs]

    def updated(self, params=None):
        """Note that the `updates` of these parameters, or of all, were made."""
        params = self.params if params is None else params
        if self.momentum > 0 and not self._has_momentum.issuperset(params):
            self._has_momentum.update(params)
            self._updates_for = None

    def momentum_buffer(self, parameter):
        """The momentum of a parameter, a writable view in PyTorch's shape; None while there is none."""
        if not any(own is parameter for own in self._has_momentum):
            return None
        self.follow()
        return parameter.shaped(self._buffer[parameter.start:parameter.stop])

    def state_dict(self):
        """The options, and a list with a copy of each parameter's momentum, None where there is none yet."""
        buffers = [self.momentum_buffer(parameter) for parameter in self.params]
        return {**self._named_options(),
                "momentum_buffers": [None if buffer is None else self._backend.to_host(buffer) for buffer in buffers]}

    def load_state_dict(self, state):
        """Take over the options and the momentum that `state_dict` gave.

        Raises
        ------
        TypeError, ValueError
            When an entry is missing or a momentum buffer does not fit. Nothing is changed then.
        """
        state = dict(instance(state, "state", Mapping, "what SGD.state_dict() gives"))
        buffers = state.pop("momentum_buffers", None)
        if buffers is None or state.keys() != self._named_options().keys():
            raise ValueError(f"state: expected what SGD.state_dict() gives, got entries {shown(list(state))}")
        buffers = [None if buffer is None else numeric(buffer, "state")
                   for buffer in sequence(buffers, "state", "a list of momentum buffers")]
        shapes = [None if buffer is None else tuple(buffer.shape) for buffer in buffers]
        expected = [parameter.shape for parameter in self.params]
        if len(shapes) != len(expected) or any(found not in (None, own) for found, own in zip(shapes, expected, strict=True)):
            raise ValueError(f"state: expected momentum of shapes {shown(expected)}, got {shown(shapes)}")
        fresh = SGD(self.params, **state)
        if fresh.momentum > 0:
            for parameter, buffer in zip(self.params, buffers, strict=True):
                if buffer is not None:
                    parameter.write(fresh._buffer[parameter.start:parameter.stop], buffer)
                    fresh._has_momentum.add(parameter)
        self.__dict__.update(fresh.__dict__)

    def __repr__(self):
        options = (f"{name}={value}" for name, value in self._named_options().items())
        return f"SGD({len(self.params)} parameters, {', '.join(options)})"

    def _named_options(self):
        return {name: getattr(self, name) for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")}


def constant(lr):
    """The same learning rate in every step."""
    lr = rate(lr, "lr")
    return lambda k: lr


def step(lr, step_size, gamma=0.1):
    """lr * gamma^floor(k / step_size): multiplied by gamma after every `step_size` steps.

    Examples
    --------
    >>> learning_rate = step(0.5, step_size=3, gamma=0.5)
    >>> [learning_rate(k) for k in range(7)]
    [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    """
    lr, step_size, gamma = rate(lr, "lr"), integer(step_size, "step_size", 1, INT64), rate(gamma, "gamma")

    def learning_rate(k):
        try:
            return lr * gamma ** (k // step_size)
        except OverflowError:
            return math.inf
    return learning_rate


def cosine(lr, total, final=0.0):
    """final + (lr - final) * (1 + cos(pi k / total)) / 2: from `lr` at step 0 down to `final` at step `total`.

    Examples
    --------
    >>> learning_rate = cosine(0.5, total=4)
    >>> [round(learning_rate(k), 4) for k in range(5)]
    [0.5, 0.4268, 0.25, 0.0732, 0.0]
    """
    lr, total, final = rate(lr, "lr"), integer(total, "total", 1, INT64), rate(final, "final")
    return lambda k: _cosine(lr, final, k / total)


def _with_former_names_refused(function):
    """`one_cycle` with a TypeError for the names that its arguments had before."""
    former = {"peak": "max_lr", "rise": "pct_start", "divide_first": "div_factor", "divide_last": "final_div_factor"}

    @functools.wraps(function)
    def call(*arguments, **options):
        if found := [f"{old} is now {new}" for old, new in former.items() if old in options]:
            raise TypeError(f"{', '.join(found)}: the arguments have PyTorch's names")
        return function(*arguments, **options)
    return call


@_with_former_names_refused
def one_cycle(max_lr, total, pct_start=0.2, div_factor=25.0, final_div_factor=1e4):
    """Up from max_lr/div_factor to `max_lr` and down to max_lr/(div_factor*final_div_factor), both along half a cosine.

    Parameters
    ----------
    max_lr : float
        The largest learning rate.
    total : int
        Number of steps of the whole training.
    pct_start : float
        The part of them, from 0 to 1, on the way up: step pct_start*total - 1 has max_lr, step total - 1 the last rate.
    div_factor, final_div_factor : float, positive
        The first rate is initial_lr = max_lr/div_factor, the last one initial_lr/final_div_factor.

    Notes
    -----
    A way up that is shorter than one step ends before step 0, which then has a rate on the way down. One of exactly one step
    begins with max_lr, where PyTorch divides by zero.

    Source: PyTorch's torch.optim.lr_scheduler.OneCycleLR, whose pct_start is 0.3 by default.

    Examples
    --------
    >>> learning_rate = one_cycle(1.0, total=11, pct_start=3 / 11, final_div_factor=100)
    >>> [round(learning_rate(k), 4) for k in range(11)]
    [0.04, 0.52, 1.0, 0.962, 0.8536, 0.6915, 0.5002, 0.3089, 0.1468, 0.0384, 0.0004]
    """
    max_lr, total, pct_start = rate(max_lr, "max_lr"), integer(total, "total", 1, INT64), fraction(pct_start, "pct_start")
    div_factor, final_div_factor = rate(div_factor, "div_factor"), rate(final_div_factor, "final_div_factor")
    if not (div_factor > 0 and final_div_factor > 0):
        raise ValueError(f"div_factor, final_div_factor: expected positive numbers, got {div_factor} and {final_div_factor}")
    initial_lr = max_lr / div_factor
    last_lr, top = initial_lr / final_div_factor, pct_start * total - 1

    def learning_rate(k):
        if k < top:
            return _cosine(initial_lr, max_lr, k / top)
        return _cosine(max_lr, last_lr, (k - top) / ((total - 1 - top) or 1))
    return learning_rate


def _cosine(start, end, part):
    """From start to end along half a cosine, a `part` of the way; `end` where the part is above 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(part, 1))) / 2


__getattr__ = say_instead("nbcnn.optim", globals())
