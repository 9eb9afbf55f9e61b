"""What activations are stored and multiplied in: float32 ("f32"), or bfloat16 on the processor's unit for it ("bf16").

With "bf16" weights, their gradients, the optimizer, batch statistics, the loss and a network's outputs stay float32, and so do the
images, which the first layer rounds where it multiplies them in bfloat16. Activations and their gradients are bfloat16: 8 of
float32's 24 bits. Products of these are exact, and summed up in float32.
"""
import numpy as np

from nbcnn.kernels.arguments import one_of
from nbcnn.kernels.cpu.unit import unit_in_use

PRECISIONS = "f32", "bf16"


def why_not_bfloat16(model):
    """Why a model cannot be computed with "bf16" here, in words; "" where it can.

    Raises
    ------
    ValueError
        When NBCNN_UNIT names a unit that this processor does not have.
    """
    if model.dtype != np.float32:
        return "the model's numbers are float64"
    if model.device != "cpu":
        return f"the model is on {model.device}, and bf16 is for CPUs"
    return "" if unit_in_use() else "this processor has no unit for bf16, neither AMX nor AVX512-BF16"


def require_precision(precision, model):
    """The precision that a model is computed in: "f64" for one in float64, else the one asked for.

    Raises
    ------
    TypeError, ValueError
        When it is none of those there are; when it is "bf16" and the model lies on a GPU or the processor has no unit for it.
    """
    one_of(precision, "precision", PRECISIONS)
    if model.dtype != np.float32:
        return "f64"
    if precision == "bf16" and (reason := why_not_bfloat16(model)):
        raise ValueError(f"precision: expected 'f32', got 'bf16': {reason}")
    return precision
