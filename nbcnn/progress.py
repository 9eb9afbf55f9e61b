"""How far a training is."""
import sys
from dataclasses import dataclass

from nbcnn.kernels.arguments import fraction, integer, real


@dataclass
class Progress:
    """How far a training is. With parameters and momentum, this is all that is needed to go on with the same bits.

    Parameters
    ----------
    epoch : int
        Epochs finished.
    step : int
        Batches done of the next epoch.
    loss_sum : float
        The sum of these batches' losses, each times its number of samples.
    samples : int
        How many samples they had together.
    best_accuracy : float or None
        The best test accuracy so far, from 0 to 1.
    best_epoch : int
        The epoch, counted from 1, that it was reached after.
    """
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    best_accuracy: float | None = None
    best_epoch: int = 0

    def __post_init__(self):
        for name in ("epoch", "step", "samples", "best_epoch"):
            integer(getattr(self, name), name, 0)
        real(self.loss_sum, "loss_sum", "a finite number", -sys.float_info.max, sys.float_info.max)
        if self.samples < self.step:
            raise ValueError(f"samples: expected at least one for each of {self.step} batches, got {self.samples}")
        if self.best_epoch > self.epoch:
            raise ValueError(f"best_epoch: expected at most the {self.epoch} epochs finished, got {self.best_epoch}")
        if self.best_accuracy is not None:
            fraction(self.best_accuracy, "best_accuracy")
        elif self.best_epoch:
            raise ValueError(f"best_accuracy: expected that of epoch {self.best_epoch}, got None")
