"""What activations are stored and multiplied in: float32 ("f32"), or bfloat16 on the processor's unit for it ("bf16").

With "bf16" weights, their gradients, the optimizer, batch statistics, the loss and a network's outputs stay float32, and so do the
images, which the first layer rounds. Activations and their gradients are bfloat16: 8 of float32's 24 bits. Products of these are
exact, and summed up in float32.
"""
import copy
import time

import numpy as np

from nbcnn.kernels.arguments import one_of
from nbcnn.kernels.backend import load_backend

PRECISIONS = "f32", "bf16"
TRIALS = 5          # steps of each that are compared, after one that compiles


def require_precision(precision, model):
    """The precision that a model is computed in: "f64" for one in float64, else the one asked for.

    Raises
    ------
    TypeError, ValueError
        When it is none of those there are; when it is "bf16" and the model lies on a GPU or the processor has no unit for it.
    """
    if one_of(precision, "precision", PRECISIONS) == "f32":
        return precision if model.dtype == np.float32 else "f64"
    if model.dtype != np.float32:
        return "f64"
    if model.device != "cpu":
        raise ValueError(f"precision: expected 'f32', got 'bf16': the model is on {model.device}, and bf16 is for CPUs")
    try:
        load_backend("cpu").require_unit()
    except ValueError as error:
        raise ValueError(f"precision: expected 'f32', got 'bf16': {error}") from None
    return precision


def choose_precision(model, batch_size, loss=None):
    """(precision, why): the one that is faster here for a model with input_shape, in words why.

    Both are measured where the processor has a unit for bfloat16, in training steps on random images where there is a loss, else in
    predictions. They run on a copy: the model stays as it is.
    """
    from nbcnn.scheduler import BackpropScheduler  # it imports this module
    try:
        if require_precision("bf16", model) != "bf16":
            return "f32", "the model's numbers are float64"
    except ValueError as error:
        return "f32", str(error).rpartition(": ")[2]
    from nbcnn.optim import SGD
    rng, best = np.random.default_rng(0), {}
    tried, images = copy.deepcopy(model), rng.random((batch_size, *model.input_shape), np.float32)
    targets = None if loss is None else _targets(loss, rng.integers(0, model.output_shape(model.input_shape)[0], batch_size), model)
    schedulers = {precision: BackpropScheduler(tried, loss, precision=precision) for precision in PRECISIONS}
    optimizer = None if loss is None else SGD(tried.parameters(), lr=0.0)
    for trial in range(1 + TRIALS):
        for precision, scheduler in schedulers.items():
            started = time.perf_counter()
            scheduler.predict(images) if loss is None else scheduler.train_step(images, targets, optimizer)
            if trial:
                best[precision] = min(best.get(precision, np.inf), time.perf_counter() - started)
    found = min(best, key=best.get)
    f32, bf16 = (f"{best[precision] * 1e3:.3g} ms" for precision in PRECISIONS)
    return found, f"{'a prediction' if loss is None else 'a step'} took {bf16} with bf16 and {f32} with f32"


def _targets(loss, labels, model):
    from nbcnn.evaluation import make_targets  # it imports the scheduler
    return make_targets(loss, model.output_shape(model.input_shape)[0], model.dtype)(labels)
