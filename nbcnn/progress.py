"""How far a training is."""
import sys
from dataclasses import dataclass

from nbcnn.kernels.arguments import fraction, integer, real


@dataclass
class Progress:
    """How far a training is: with parameters and momentum, all it takes to go on with the same bits.

    Parameters
    ----------
    epoch : int
        Epochs finished.
    step : int
        Batches done of the next one.
    loss_sum : float
        Sum of their losses, each times its number of pictures.
    samples : int
        Pictures in them.
    best_accuracy : float or None
        The best test accuracy so far, a fraction, and
    best_epoch : int
        the epoch it was reached after, counted from 1.
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
