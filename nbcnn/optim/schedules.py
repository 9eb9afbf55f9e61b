"""Learning rates: functions of the step, which agree with the classes of torch.optim.lr_scheduler that are stepped once per batch;
and one that follows a number."""
import functools
import itertools
import math
import numbers
from collections.abc import Mapping

from nbcnn.kernels.arguments import INT64, fraction, instance, integer, one_of, rate, real, sequence
from nbcnn.kernels.shown import shown
from nbcnn.optim.optimizer import Optimizer


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


def multistep(lr, milestones, gamma=0.1):
    """lr * gamma^(how many of the milestones k has reached): multiplied by gamma at each of these steps.

    Source: PyTorch's torch.optim.lr_scheduler.MultiStepLR, stepped once per batch.

    Examples
    --------
    >>> learning_rate = multistep(0.5, [2, 3], gamma=0.5)
    >>> [learning_rate(k) for k in range(5)]
    [0.5, 0.5, 0.25, 0.125, 0.125]
    """
    lr, gamma = rate(lr, "lr"), rate(gamma, "gamma")
    milestones = [integer(item, "milestones", 0, INT64) for item in sequence(milestones, "milestones", "a list of ints")]

    def learning_rate(k):
        try:
            return lr * gamma ** sum(milestone <= k for milestone in milestones)
        except OverflowError:
            return math.inf
    return learning_rate


def piecewise(lr, points, total):
    """Straight lines between points (part of all steps, share of lr): up in a warm-up and down again, for instance.

    Parameters
    ----------
    lr : float
    points : list of pairs of floats
        In each the part of the `total` steps, from 0 to 1 and never less than the one before, and the factor of lr there. Before
        the first point and after the last one the factor stays as it is there; of two at one place the second one counts.
    total : int
        Number of steps of the whole training.

    Examples
    --------
    >>> learning_rate = piecewise(0.5, [(0, 0.2), (0.5, 1), (1, 0)], total=8)
    >>> [round(learning_rate(k), 3) for k in range(9)]
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.375, 0.25, 0.125, 0.0]
    """
    lr, total = rate(lr, "lr"), integer(total, "total", 1, INT64)
    expected = "pairs of a part in [0, 1] and a factor >= 0"
    knots = []
    for point in sequence(points, "points", f"a list of {expected}"):
        both = sequence(point, "points", expected)
        if len(both) != 2:
            raise ValueError(f"points: expected {expected}, got {shown(point)}")
        knots.append((total * fraction(both[0], "points"), rate(both[1], "points")))
    if not knots or any(before > after for (before, _), (after, _) in itertools.pairwise(knots)):
        raise ValueError(f"points: expected one or more {expected}, in the order of their parts, got {shown(points)}")

    def learning_rate(k):
        after = sum(at <= k for at, _ in knots)
        if after in (0, len(knots)):
            return lr * knots[0 if after == 0 else -1][1]
        (start, low), (stop, high) = knots[after - 1:after + 1]
        return lr * (low + (high - low) * (k - start) / (stop - start))
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


PLATEAU_STATE = "best", "num_bad_epochs", "cooldown_counter"


class ReduceLROnPlateau:
    """Multiplies the learning rates by `factor` when a number that should fall, or rise, has not done so for a while.

        plateau = nbcnn.optim.ReduceLROnPlateau(optimizer, patience=2)
        nbcnn.fit(model, train, test, optimizer=optimizer, on_epoch=lambda state: plateau.step(state.history[-1]["test_loss"]))

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether less is better, as of a loss, or more, as of an accuracy.
    factor : float
        Less than 1.
    patience : int
        So many numbers in a row may be no better than the best before; the next one lowers the rates.
    threshold : float
        By how much a number must be better than the best to count: "rel", best * (1 - threshold), or (1 + threshold) with "max";
        "abs", best - threshold, or +.
    threshold_mode : {"rel", "abs"}
    cooldown : int
        After the rates were lowered, so many numbers are not counted as bad.
    min_lr : float, or list of floats, one for each group
    eps : float
        A rate that would change by no more than this stays.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of these.

    Notes
    -----
    NaN is no better than anything.

    Source: PyTorch's torch.optim.lr_scheduler.ReduceLROnPlateau.

    Examples
    --------
    >>> import nbcnn
    >>> optimizer = nbcnn.SGD(nbcnn.Sequential([nbcnn.Linear(2, 1)]).parameters(), lr=0.5)
    >>> plateau, rates = ReduceLROnPlateau(optimizer, patience=1), []
    >>> for loss in (3.0, 2.0, 2.5, 2.25, 1.0):
    ...     plateau.step(loss)
    ...     rates.append(optimizer.lr)
    >>> rates
    [0.5, 0.5, 0.5, 0.05, 0.05]
    """

    def __init__(self, optimizer, mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel", cooldown=0, min_lr=0,
                 eps=1e-8):
        self.optimizer = instance(optimizer, "optimizer", Optimizer, "an optimizer, as nbcnn.SGD(...)")
        self.mode = one_of(mode, "mode", ("min", "max"))
        self.threshold_mode = one_of(threshold_mode, "threshold_mode", ("rel", "abs"))
        self.factor = real(factor, "factor", "a number >= 0 and < 1", 0, math.nextafter(1, 0))
        self.patience, self.cooldown = integer(patience, "patience", 0, INT64), integer(cooldown, "cooldown", 0, INT64)
        self.threshold, self.eps = rate(threshold, "threshold"), rate(eps, "eps")
        groups = optimizer.param_groups
        rates = sequence(min_lr, "min_lr", "numbers") if isinstance(min_lr, list | tuple) else [min_lr] * len(groups)
        self.min_lr = [rate(value, "min_lr") for value in rates]
        if len(rates) != len(groups):
            raise ValueError(f"min_lr: expected a number, or one for each of {len(groups)} groups, got {shown(min_lr)}")
        self.best, self.num_bad_epochs, self.cooldown_counter = math.inf if mode == "min" else -math.inf, 0, 0

    def step(self, metrics):
        """Take the next number, and lower the rates where it is time."""
        is_nan = isinstance(metrics, numbers.Real) and metrics != metrics
        number = math.nan if is_nan else real(metrics, "metrics", "a number", -math.inf, math.inf)
        if self._better(number):
            self.best, self.num_bad_epochs = number, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        if self.num_bad_epochs > self.patience:
            for group, least in zip(self.optimizer.param_groups, self.min_lr, strict=True):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _better(self, number):
        """Whether a number is better than the best, by more than the threshold."""
        sign = -1 if self.mode == "min" else 1
        bound = self.best * (1 + sign * self.threshold) if self.threshold_mode == "rel" else self.best + sign * self.threshold
        return number < bound if self.mode == "min" else number > bound

    def state_dict(self):
        """What changes from step to step."""
        return {name: getattr(self, name) for name in PLATEAU_STATE}

    def load_state_dict(self, state):
        """Take over what `state_dict` gave; raises TypeError or ValueError, and changes nothing, where it is something else."""
        what = "what ReduceLROnPlateau.state_dict() gives"
        if set(instance(state, "state", Mapping, what)) != set(PLATEAU_STATE):
            raise ValueError(f"state: expected {what}, got entries {shown(list(state))}")
        best = real(state["best"], "state", "a number", -math.inf, math.inf)
        counts = {name: integer(state[name], "state", 0, INT64) for name in PLATEAU_STATE[1:]}
        self.__dict__.update(counts, best=best)
