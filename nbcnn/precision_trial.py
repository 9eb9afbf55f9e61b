"""Which precision computes faster here: a few steps in each, measured."""
import copy
import time

import numpy as np

from nbcnn.evaluation import make_targets
from nbcnn.optim import SGD
from nbcnn.precision import PRECISIONS, why_not_bfloat16
from nbcnn.scheduler import BackpropScheduler

TRIALS = 5          # steps of each that are compared, after one that compiles


def choose_precision(model, batch_size, loss=None):
    """The precision that is faster here, and why, in words.

    Both are measured where the processor has a unit for bfloat16: in training steps on random images where there is a loss, else in
    predictions. They run on a copy, so the model stays as it is.

    Parameters
    ----------
    model : Network or Sequential
        With an input_shape.
    batch_size : int
    loss : loss of `nbcnn.losses`, optional

    Returns
    -------
    precision : {"f32", "bf16"}
    why : str
    """
    if reason := why_not_bfloat16(model):
        return "f32", reason
    rng, best = np.random.default_rng(0), {}
    tried, images = copy.deepcopy(model), rng.random((batch_size, *model.input_shape), np.float32)
    if loss is not None:
        outputs, = model.output_shape(model.input_shape)
        targets = make_targets(loss, outputs, model.dtype)(rng.integers(0, outputs, batch_size))
        optimizer = SGD(tried.parameters(), lr=0.0)
    schedulers = {precision: BackpropScheduler(tried, loss, precision=precision) for precision in reversed(PRECISIONS)}
    try:
        for trial in range(1 + TRIALS):
            for precision, scheduler in schedulers.items():
                started = time.perf_counter()
                scheduler.predict(images) if loss is None else scheduler.train_step(images, targets, optimizer)
                if trial:
                    best[precision] = min(best.get(precision, np.inf), time.perf_counter() - started)
    except MemoryError:
        return "f32", "there is not enough memory to try both"
    found = min(best, key=best.get)
    f32, bf16 = (f"{best[precision] * 1e3:.3g} ms" for precision in PRECISIONS)
    return found, f"{'a prediction' if loss is None else 'a step'} took {bf16} with bf16 and {f32} with f32"
