"""A learning-rate range test: how the loss changes while the learning rate grows from step to step."""
import copy
import math
from dataclasses import dataclass

from nbcnn.fit import NonFiniteLoss, fit
from nbcnn.kernels.arguments import function, instance, integer, real
from nbcnn.layers import require_network
from nbcnn.optim import RECIPE, SGD, Optimizer
from nbcnn.table import format_table

SMOOTH = 0.9        # how much of the mean loss before stays in that of a step
DIVERGED = 4        # times the lowest loss: from there on nothing is learned
ROWS = 20           # of the table


@dataclass
class RangeTest:
    """What `find_lr` finds.

    Attributes
    ----------
    rates, losses : list of float
        Of each step that was done: the learning rate, and the moving mean of the losses up to there.
    lr : float
        The rate at which the loss falls fastest.
    """
    rates: list
    losses: list

    @property
    def lr(self):
        """The rate of the steepest fall, over the tenth of the steps around it."""
        width = max(1, len(self.losses) // 20)
        best = min(range(len(self.losses)), key=self.losses.__getitem__)
        falls = [(self.losses[min(k + width, best)] - self.losses[max(k - width, 0)], k) for k in range(best + 1)]
        return self.rates[min(falls)[1]]

    def __str__(self):
        every = -(-len(self.rates) // ROWS)
        rows = [[f"{rate:.2e}", f"{loss:.4f}"] for rate, loss in zip(self.rates, self.losses, strict=True)][every - 1::every]
        return f"{format_table(['learning rate', 'loss'], rows)}\n\nthe loss falls fastest at {self.lr:.2g}"


def find_lr(model, train, *, steps=100, lowest=1e-5, highest=10.0, make_optimizer=None, **options):
    """Train a copy of a model while the learning rate grows, and see where the loss falls fastest: `nbcnn.find_lr`.

    rate[k] = lowest (highest / lowest)^(k / (steps - 1)). The test ends before the last step where the loss has grown to four times
    the lowest one, or is not finite.

    Parameters
    ----------
    model : Network or Sequential
        Stays as it is.
    train : Dataset
    steps : int
    lowest, highest : float
    make_optimizer : function, optional
        From a model to its optimizer, whose rate does not matter. By default that of `nbcnn.fit`.
    **options
        As batch_size, loss, augment and seed of `nbcnn.fit`.

    Returns
    -------
    RangeTest
        `print` shows a table.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of these; what else `nbcnn.fit` raises.
    NonFiniteLoss
        When already the first step's loss is not finite.

    Source: Smith, Cyclical learning rates for training neural networks (2015), section 3.3.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> labels = np.arange(64) % 2                      # dark and bright images
    >>> images = np.full((64, 1, 4, 4), 255, np.uint8) * labels[:, None, None, None].astype(np.uint8)
    >>> train = nbcnn.datasets.Dataset(images, labels, ["dark", "bright"], "lamps")
    >>> model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(16, 2)])
    >>> found = nbcnn.find_lr(model, train, batch_size=16, augment=False)
    >>> 1e-3 < found.lr < 1
    True
    """
    require_network(model)
    steps = integer(steps, "steps", 2)
    lowest = real(lowest, "lowest", "a positive number", math.ulp(0.0), math.inf)
    highest = real(highest, "highest", f"a number above lowest, {lowest}", math.nextafter(lowest, math.inf), math.inf)
    function(make_optimizer, "make_optimizer")
    tried, mean, test = copy.deepcopy(model).to(model.device), 0.0, RangeTest([], [])
    optimizer = SGD(tried.parameters(), **RECIPE) if make_optimizer is None else make_optimizer(tried)
    instance(optimizer, "make_optimizer", Optimizer, "a function that returns an optimizer")

    def rate(k):
        return lowest * (highest / lowest) ** (k / (steps - 1))

    def on_step(state):
        nonlocal mean
        mean = SMOOTH * mean + (1 - SMOOTH) * float(state.loss)
        test.rates.append(rate(len(test.rates)))
        test.losses.append(mean / (1 - SMOOTH ** len(test.rates)))      # without the 0 that the mean begins with
        state.stop = len(test.rates) == steps or test.losses[-1] > DIVERGED * min(test.losses)
    try:
        fit(tried, train, epochs=steps, optimizer=optimizer, schedule=rate, on_step=on_step, verbose=0, **options)
    except NonFiniteLoss:
        if not test.rates:
            raise
    return test
