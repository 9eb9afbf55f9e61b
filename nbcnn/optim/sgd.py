"""Stochastic gradient descent."""
from nbcnn.kernels.arguments import flag, nesterov_fits, rate
from nbcnn.optim.optimizer import Optimizer, option

RECIPE = dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)      # what `nbcnn.fit` and `nbcnn train` begin with


class SGD(Optimizer):
    """Stochastic gradient descent; `nbcnn.kernels.sgd_step` says what an update is.

    Parameters
    ----------
    params : list of Parameter, or list of dict
        All parameters of one model, or some of them; or groups of them, as of `nbcnn.optim.Optimizer`.
    lr : float
        Learning rate. The attribute `lr` may be set before every step.
    momentum, dampening, weight_decay : float
    nesterov, maximize : bool

    Raises
    ------
    TypeError
        When `params` holds something else, or a rate is no number.
    ValueError
        When `params` is empty, holds a parameter twice or mixes models; when a group has an option that is none of these; when a
        rate is negative or not finite; when nesterov comes without momentum or with dampening.

    Notes
    -----
    A parameter whose grad is None stays as it is, and so does its momentum. One call of the kernel updates all parameters of a
    group that lie side by side in memory, as long as all of them have momentum or all have none yet: for a whole model that is one
    call.

    Source: PyTorch's torch.optim.SGD.
    """
    slots = ("momentum_buffer",)
    momentum, dampening, weight_decay = option("momentum"), option("dampening"), option("weight_decay")
    nesterov, maximize = option("nesterov"), option("maximize")

    def __init__(self, params, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
        super().__init__(params, dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
                                      maximize=maximize))

    def checked(self, group):
        dtype = self.vector.data.dtype
        rates = {name: rate(group[name], name, dtype) for name in ("momentum", "dampening", "weight_decay")}
        flags = {name: flag(group[name], name) for name in ("nesterov", "maximize")}
        nesterov_fits(flags["nesterov"], rates["momentum"], rates["dampening"])
        return rates | flags

    def kernel_options(self, group):
        cast, momentum, decay = self.vector.data.dtype.type, group["momentum"], group["weight_decay"]
        return (cast(momentum), cast(1 - group["dampening"]), cast(decay), decay > 0, momentum > 0, group["nesterov"],
                group["maximize"])

    def used_slots(self, group):
        return self.slots if group["momentum"] > 0 else ()

    def update(self, run, lr):
        self.vector.backend.update(run.data, run.slots[0], run.grad, lr, run.options, self.begins(run))

    def updated(self, params=None):
        """Note that these parameters, by default all that are not frozen, were updated."""
        if len(self._counts) == len(self.params) or not any(group["momentum"] > 0 for group in self.param_groups):
            return
        params = self._trainable() if params is None else params
        begun = [p for p in params if p not in self._counts and self.param_groups[self._group[p]]["momentum"] > 0]
        if begun:
            self._counts.update(dict.fromkeys(begun, 1))
            self._runs_for = None

    def updates(self):
        """(data, momentum, gradient, first, options) for each run of the parameters that are not frozen."""
        return [(run.data, run.slots[0], run.grad, self.begins(run), run.options) for run in self.runs(self._trainable())]

    def _trainable(self):
        """The parameters that are not frozen."""
        return [parameter for parameter in self.params if parameter.trainable]

    def update_of_all(self):
        """(momentum, options) for an update of the whole vector; None while a parameter is left out, frozen or without momentum."""
        self.follow()
        if len(self.param_groups) > 1 or len(self._trainable()) < self.vector.count:
            return None
        options, used = self.options_of(0), self.used_slots(self.param_groups[0])
        if used and len(self._counts) < self.vector.count:
            return None
        return self._slot("momentum_buffer") if used else self._beside.arrays["momentum_buffer"], options

    def momentum_buffer(self, parameter):
        """The momentum of a parameter, a writable view in PyTorch's shape; None while there is none."""
        return self.slot("momentum_buffer", parameter)

    def begins(self, run):
        """Whether a run's momentum begins with this update."""
        return run.count == 0 and run.slots[0].size > 0
