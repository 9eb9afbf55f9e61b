"""What activations are stored and multiplied in: float32 ("f32"), or bfloat16 on the processor's unit for it ("bf16").

With "bf16" weights, their gradients, the optimizer, batch statistics, the loss and a network's outputs stay float32, and so do the
images, which the first layer rounds. Activations and their gradients are bfloat16: 8 of float32's 24 bits. Products of these are
exact, and summed up in float32.
"""
import numpy as np

from nbcnn.kernels.arguments import one_of
from nbcnn.kernels.backend import load_backend

PRECISIONS = "f32", "bf16"


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
