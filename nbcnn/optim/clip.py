"""Gradients that are not too long."""
import math

from nbcnn.kernels import turns
from nbcnn.kernels.arguments import instance, real, sequence
from nbcnn.optim.optimizer import side_by_side, vector_of
from nbcnn.parameter import Parameter


def clip_grad_norm_(parameters, max_norm):
    """Multiply all gradients by the same number, so that together they are at most so long.

    norm = sqrt(sum of the squares of all gradients); grad = grad * min(1, max_norm / (norm + 1e-6)).

    Parameters
    ----------
    parameters : list of Parameter, or Parameter
        Of one model. Those whose grad is None count for nothing.
    max_norm : float

    Returns
    -------
    norm : float
        What it was before.

    Raises
    ------
    TypeError
        When `parameters` holds something else, or max_norm is no number.
    ValueError
        When `parameters` mixes models, or max_norm is negative.

    Notes
    -----
    A norm that is not finite is no error, as in PyTorch with error_if_nonfinite=False: where it is NaN all gradients become NaN,
    where it is infinite they become 0, or NaN. Equal bits for any number of threads: which squares are added up in which order
    follows from the shapes alone.

    Source: PyTorch's torch.nn.utils.clip_grad_norm_.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Linear(2, 1, bias=False)])
    >>> weight, = model.parameters()
    >>> weight.grad = np.array([[3.0, 4.0]])
    >>> nbcnn.optim.clip_grad_norm_(model.parameters(), 1.0), weight.grad.round(3).tolist()
    (5.0, [[0.6000000238418579, 0.800000011920929]])
    """
    items = [parameters] if isinstance(parameters, Parameter) else sequence(parameters, "parameters", "a list of nbcnn Parameters")
    max_norm = real(max_norm, "max_norm", "a number >= 0", 0, math.inf)
    for parameter in items:
        instance(parameter, "parameters", Parameter, "nbcnn Parameters")
    vector = vector_of(items, "parameters") if items else None
    grads = [vector.grad[at] for _, _, at in side_by_side({p for p in items if p.has_grad})]
    with turns.lock:
        norm = math.sqrt(sum(vector.backend.sum_of_squares(grad) for grad in grads))
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1:
            for grad in grads:
                vector.backend.multiply(grad, factor)
    return norm
