"""How far a training is, and how that is shown."""
import importlib
import sys
from dataclasses import dataclass

from nbcnn.kernels.arguments import fraction, integer, real
from nbcnn.table import fit


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


class ProgressBar:
    """A bar of the images of an epoch, on a terminal or in a notebook; elsewhere nothing."""

    def __init__(self, total, silent=False):
        self.total, self.silent, self.bar = total, silent, None

    def show(self, state):
        """Show how far the epoch is."""
        if self.silent:
            return
        if self.bar is None:
            notebook = "ipykernel" in sys.modules
            tqdm = importlib.import_module("tqdm.auto" if notebook else "tqdm").tqdm
            self.bar = tqdm(desc=f"epoch {state.progress.epoch + 1}/{state.epochs}", total=self.total, unit=" images", leave=False,
                            disable=False if notebook else None)        # None: unless it is a terminal
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {state.progress.loss_sum / state.progress.samples:.4f}", refresh=False)
            self.bar.update(state.progress.samples - self.bar.n)

    def close(self):
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def epoch_line(state, mark=str):
    """What is said of the epoch that has just ended, in a line that fits. `mark` changes the accuracy that is the best so far."""
    row, chosen = state.history[-1], None
    parts = [[f"epoch {row['epoch']:{len(str(state.epochs))}}/{state.epochs}"],
             [f"{name} {row['train_loss']:.4f}" for name in ("train loss", "train")]]
    for name in ("val", "test"):
        if row.get(f"{name}_loss") is not None:
            chosen = chosen or len(parts) + 1       # the first one chooses the best epoch
            accuracy = f"{row[f'{name}_accuracy']:6.2%}"
            parts += [[f"{text} {row[f'{name}_loss']:.4f}" for text in (f"{name} loss", name)],
                      [f"{'val ' if name == 'val' else ''}accuracy {accuracy}", f"acc {accuracy}", accuracy]]
    rate, seconds = row["images_per_second"], row["seconds"]
    texts = fit([*parts, [f"lr {row['lr']:.2e}"] * 4 + [""], [f"{rate:6,.0f} images/s", *[f"{rate:,.0f}/s"] * 2, ""],
                 [f"{seconds:5.1f} s", *[f"{seconds:.1f} s"] * 2, ""]])
    if chosen and state.progress.best_epoch == state.progress.epoch:
        texts[chosen] = mark(texts[chosen])
    return "  ".join(filter(None, texts))
