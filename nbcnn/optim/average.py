"""Moving averages of all that a model has learned: parameters, and statistics that layers keep."""
import contextlib
from collections.abc import Mapping

from nbcnn.kernels import turns
from nbcnn.kernels.arguments import INT64, fraction, instance, integer, numeric
from nbcnn.kernels.shown import shown
from nbcnn.layers import require_network
from nbcnn.optim.optimizer import Beside, Optimizer


class Lookahead(Optimizer):
    """An optimizer whose parameters are drawn back, every few steps, to a slow copy that follows them.

    After each `every` steps of the optimizer: slow = decay * slow + (1 - decay) * fast; fast = slow, for all that the model has
    learned, statistics such as a running mean included. The slow copy begins with the values as they are now.

    Parameters
    ----------
    optimizer : Optimizer
        It takes the steps; its rates, groups and state are reached through this one.
    every : int
    decay : float in [0, 1], or function
        How much of the slow copy stays; a function gives it for the number of steps done so far.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of these.

    Notes
    -----
    `finish()`, after the last step, leaves the model with the slow copy.

    Source: Zhang, Lucas, Hinton and Ba 2019, whose alpha is 1 - decay.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Linear(1, 1, bias=False)], state={"0.weight": np.zeros((1, 1))})
    >>> optimizer, values = Lookahead(nbcnn.SGD(model.parameters(), lr=1.0), every=2, decay=0.5), []
    >>> for _ in range(4):
    ...     model.parameters()[0].grad = [[-1.0]]
    ...     optimizer.step()
    ...     values.append(model.parameters()[0].data.item())
    >>> values
    [1.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, optimizer, every=5, decay=0.5):
        if isinstance(optimizer, Lookahead):
            raise TypeError("optimizer: expected an optimizer without Lookahead, got a Lookahead")
        self.optimizer = instance(optimizer, "optimizer", Optimizer, "an optimizer, as nbcnn.SGD(...)")
        self.every, self.decay, self.steps = integer(every, "every", 1), decay, 0
        if not callable(decay):
            self.decay = fraction(decay, "decay")
        self.params, self.param_groups, self.vector = optimizer.params, optimizer.param_groups, optimizer.vector
        self._beside = Beside(self.vector)
        self._beside.arrays["slow"] = copy_of(self.vector.data, self.vector.backend)

    def step(self):
        """A step of the optimizer; every few steps also one of the slow copy."""
        steps = self.steps + 1
        decay = None
        if steps % self.every == 0:
            decay = fraction(self.decay(steps), "decay") if callable(self.decay) else self.decay
        with turns.lock:
            self.optimizer.step()
            self.steps = steps
            if decay is not None:
                backend, slow = self.vector.backend, self.slow
                backend.move_average(slow, self.vector.data, decay)
                backend.write(self.vector.data, slow)

    def finish(self):
        """Give the slow copy to the model, after the last step."""
        with turns.lock:
            self.vector.backend.write(self.vector.data, self.slow)

    @property
    def slow(self):
        """The slow copy, a flat array in the order of memory, where the model's parameters are."""
        self._beside.follow()
        return self._beside.arrays["slow"]

    def state_dict(self):
        """The optimizer's own state, every, decay (None for a function), the steps done, and the slow copy, flat."""
        return {"optimizer": self.optimizer.state_dict(), "every": self.every, "steps": self.steps,
                "decay": None if callable(self.decay) else self.decay, "slow": self.vector.backend.to_host(self.slow)}

    def load_state_dict(self, state):
        """Take over what `state_dict` gave; a decay that was a function is left as it is here.

        Raises
        ------
        TypeError, ValueError
            When an entry is missing or does not fit. Nothing is changed then.
        """
        what, names = "what Lookahead.state_dict() gives", ("optimizer", "every", "decay", "steps", "slow")
        if set(instance(state, "state", Mapping, what)) != set(names):
            raise ValueError(f"state: expected {what}, got entries {shown(list(state))}")
        optimizer, every, decay, steps, slow = (state[name] for name in names)
        every, steps = integer(every, "every", 1), integer(steps, "steps", 0, INT64)
        decay = self.decay if decay is None else fraction(decay, "decay")
        slow = numeric(slow, "slow", self.vector.data.shape, "that of all parameters and statistics")
        self.optimizer.load_state_dict(optimizer)
        self.every, self.decay, self.steps = every, decay, steps
        self.vector.backend.write(self.slow, slow)

    def __repr__(self):
        return f"Lookahead({self.optimizer!r}, every={self.every}, decay={self.decay})"


class EMA:
    """An exponential moving average of all that a model has learned, statistics such as a running mean included.

    average = decay * average + (1 - decay) * values, at each `update()`; it begins with the values as they are now.

        ema = nbcnn.optim.EMA(model, 0.999)
        nbcnn.fit(model, train, optimizer=optimizer, on_step=lambda state: ema.update())
        with ema.weights():
            print(nbcnn.evaluate(model, test))

    Parameters
    ----------
    model : Network or Sequential
    decay : float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        When an argument is none of these.

    Source: PyTorch's torch.optim.swa_utils.get_ema_multi_avg_fn, Polyak and Juditsky 1992.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Linear(1, 1, bias=False)], state={"0.weight": np.zeros((1, 1))})
    >>> ema = EMA(model, decay=0.75)
    >>> model.load_state_dict({"0.weight": [[8.0]]})
    >>> ema.update()
    >>> with ema.weights():
    ...     inside = model(np.ones((1, 1), np.float32)).item()
    >>> inside, model(np.ones((1, 1), np.float32)).item()
    (2.0, 8.0)
    """

    def __init__(self, model, decay):
        require_network(model)
        self.model, self.decay = model, fraction(decay, "decay")
        self._beside = Beside(model.vector)
        self._beside.arrays["average"] = copy_of(model.vector.data, model.vector.backend)

    def update(self):
        """Take in the model's values, after a step."""
        with turns.lock:
            self.model.vector.backend.move_average(self.average, self.model.vector.data, self.decay)

    @property
    def average(self):
        """The average, a flat array in the order of memory, where the model's parameters are."""
        self._beside.follow()
        return self._beside.arrays["average"]

    def weights(self):
        """A block in which the model has the averaged values. After it, whatever happened inside, it has its own ones again."""
        return lent(self.model.vector, self.average)

    def state_dict(self):
        """What the model's `state_dict` is with the averaged values."""
        with turns.lock, self.weights():
            return self.model.state_dict()

    def load_state_dict(self, state):
        """Take over averaged values, as `state_dict` gives them; raises as the model's, and changes nothing then."""
        with turns.lock, self.weights():
            self.model.load_state_dict(state)
            self.model.vector.backend.write(self.average, self.model.vector.data)

    def __repr__(self):
        return f"EMA({len(self.model.parameters())} parameters, decay={self.decay})"


@contextlib.contextmanager
def lent(vector, values):
    """A block in which a model's vector has other data, flat in the order of memory; then it has its own, and its counts, again."""
    own = Beside(vector)
    with turns.lock:
        own.arrays = {name: copy_of(array, vector.backend) for name, array in (("data", vector.data), ("counts", vector.counts))}
        vector.backend.write(vector.data, values)
    try:
        yield
    finally:
        with turns.lock:
            own.follow()        # the model may have moved
            vector.backend.write(vector.data, own.arrays["data"])
            vector.backend.write(vector.counts, own.arrays["counts"])


def copy_of(array, backend):
    """A copy of an array of a backend, aligned as kernels like it."""
    copy = backend.allocate(array.shape, array.dtype)
    backend.write(copy, array)
    return copy
