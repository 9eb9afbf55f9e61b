"""Gradients compared with differences: whether backward is the slope of forward."""
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nbcnn.kernels.arguments import SEEDS, integer, ints
from nbcnn.kernels.backend import on_host
from nbcnn.layers import Layer, require_network
from nbcnn.losses import MSELoss
from nbcnn.model import Network, Sequential
from nbcnn.scheduler import BackpropScheduler
from nbcnn.table import format_table

SAMPLES = 2         # in a batch
ELEMENTS = 64       # of an array that are compared one by one; of a larger one as many are drawn, and all are moved at once
H = 2.0**-20        # how far values are moved, 1e-6: curvature costs its square, and a rounding 1e-16/H
TOLERANCE = 1e-6    # of differences of 1 or less, relative to larger ones


class Row(NamedTuple):
    """One gradient: its name, "x" for the input's, and what was found at the element that agrees least.

    `where` is its index, or "all" where all elements were moved at once; `error` is relative where `difference` is above 1.
    """
    name: str
    shape: tuple
    compared: int
    where: object
    backward: float
    difference: float
    error: float

    @property
    def ok(self):
        return self.error <= TOLERANCE      # NaN is not


@dataclass(repr=False)
class GradientCheck:
    """What `nbcnn.check_gradients` finds: a row for each gradient, of the input and of every parameter. True where all agree."""
    rows: list

    @property
    def ok(self):
        return all(row.ok for row in self.rows)

    def __bool__(self):
        return self.ok

    def __repr__(self):
        rows = [[row.name, " x ".join(map(str, row.shape)), f"{row.compared:,} of {math.prod(row.shape):,}", f"{row.error:.1e}",
                 "ok" if row.ok else "WRONG"] for row in self.rows]
        wrong = [f"{row.name} {row.where}: backward {row.backward:.9g}, difference {row.difference:.9g}"
                 for row in self.rows if not row.ok]
        return "\n".join([
            "backward against (f(+h) - f(-h)) / 2h, f = sum(dy * y) with a random dy,",
            f"in float64, h = {H:.1e}, tolerance {TOLERANCE:.0e}", "",
            format_table(["gradient", "shape", "compared", "error", ""], rows), *wrong])


def check_gradients(layer_or_model, shape, *, fuse=True, seed=0):
    """Compare the gradients that backward gives, of the input and of every parameter, with central differences in float64.

    Parameters
    ----------
    layer_or_model : Layer, Network or Sequential
        Stays as it is: a copy in float64 is checked, on the model's device. A layer's parameters are drawn anew.
    shape : tuple
        Of one sample, (C, H, W) or (F,). The batch has 2.
    fuse : bool
        As of `BackpropScheduler`: False checks each layer's own kernels.
    seed : int
        For the input, the upstream gradient, and the elements that are compared where an array has more than 64.

    Returns
    -------
    check : GradientCheck
        True where all gradients agree; `print(check)` shows a table, and `check.rows` has the same as data.

    Raises
    ------
    TypeError
        When `layer_or_model` is something else.
    ValueError
        When a layer cannot take the shape, or cannot be made again as its `arguments` are not those of its constructor.

    Notes
    -----
    Outputs are those of training mode: with the statistics of the batch, and always the same elements dropped.

    Before forward and backward, y and dx hold NaN: both are to write all of it. A second backward is to add to the parameters'
    gradients. The input's numbers are apart from each other and from 0, so none is at a kink of ReLU or a tie of max-pooling. In a
    network a kink may lie between f(-h) and f(+h): any number between the slopes to both sides is right there.

    Examples
    --------
    >>> import nbcnn
    >>> bool(nbcnn.check_gradients(nbcnn.Conv2d(2, 3, 3), (2, 5, 5)))
    True
    >>> [row.name for row in nbcnn.check_gradients(nbcnn.Conv2d(2, 3, 3), (2, 5, 5)).rows]
    ['x', 'weight', 'bias']
    """
    model = _in_float64(layer_or_model)
    rng = np.random.default_rng(integer(seed, "seed", 0, SEEDS))
    x = _separated((SAMPLES, *ints(shape, "shape", "a tuple of ints, of one sample", 1)), rng)
    step = BackpropScheduler(model, MSELoss(reduction="sum"), fuse=fuse, need_dx=True)
    dy = rng.standard_normal(step.predict(x).shape)

    def output(values):
        return step.predict(values, training=True)

    def backward():
        """The gradients of sum(dy * y), where all that forward and backward are to write holds NaN before."""
        _spoil(step)
        y = output(x)
        step.forward(x, y - dy / 2)         # whose gradient is 2(y - t) = dy
        step.backend.write(model.vector.steps, 0)       # so that random numbers stay the same
        step.reserve(SAMPLES, backward=True)
        _spoil(step, backward=True)
        step.backward()
        return y, on_host(step.dx).copy(), [on_host(parameter.grad).copy() for parameter in model.parameters()]
    y, dx, gradients = backward()
    *_, twice = backward()              # added to what there is
    prefix = "layer." if isinstance(layer_or_model, Layer) else ""
    rows = [_row("x", dx, x, lambda values: _difference(output(values), y, dy), rng)]
    for (name, parameter), gradient, both in zip(model.named_parameters(), gradients, twice, strict=True):
        def moved(values, parameter=parameter):
            parameter.set(values)
            return _difference(output(x), y, dy)
        values = parameter.numpy()
        row = _row(name.removeprefix(prefix), gradient, values, moved, rng)
        parameter.set(values)
        error = np.abs(both - 2 * gradient) / np.maximum(np.abs(gradient), 1)
        if row.ok and not error.max() <= TOLERANCE:
            k = np.unravel_index(error.argmax(), error.shape)
            row = row._replace(where=f"{tuple(map(int, k))} after two backwards", backward=float(both[k]),
                               difference=float(2 * gradient[k]), error=float(error[k]))
        rows.append(row)
    return GradientCheck(rows)


def _spoil(step, backward=False):
    """Put NaN where forward, or backward, is to write all: what is left as it was, or added to, shows."""
    for one in step.steps:
        for buffer in (*one.dxs, None if one is step.steps[-1] else one.dy) if backward else (one.y,):
            if buffer is not None:
                view = buffer.view(SAMPLES)
                step.backend.write(view, np.full(view.shape, np.nan))


def _in_float64(layer_or_model):
    """A model in float64 with the same layers."""
    if not isinstance(layer_or_model, Layer):
        require_network(layer_or_model)
        return Network.from_structure(layer_or_model.structure(), layer_or_model.state_dict(), layer_or_model.own_layers(),
                                         dtype=np.float64).to(layer_or_model.device)
    kind = type(layer_or_model)
    if layer_or_model.inputs != 1:
        raise ValueError(f"layer_or_model: expected a layer of one input, or a model, got {layer_or_model!r}; check a "
                         "nbcnn.Network that has it")
    try:
        layer = kind(**layer_or_model.arguments)
    except TypeError as error:
        raise ValueError(f"layer_or_model: expected self.arguments of {kind.__name__} to hold what its constructor takes, to make "
                         f"it again: {error}") from None
    return Sequential([("layer", layer)], dtype=np.float64)


def _separated(shape, rng):
    """Numbers from -2 to 2 in any order, equally far from each other, and half as far from 0."""
    size = math.prod(shape)
    return ((rng.permutation(size) + 0.5) * (4 / size) - 2).reshape(shape)


def _difference(y, before, dy):
    """How much sum(dy * y) has changed: each number's change for itself, so that what stays the same costs no roundings."""
    return float(((y - before) * dy).sum())


def _row(name, gradient, values, moved, rng):
    """Compare a gradient of `values` with `moved(values)`, the change of f where values are others."""
    compared = min(values.size, ELEMENTS)
    directions = []
    for k in np.sort(rng.choice(values.size, compared, replace=False)):
        direction = np.zeros(values.shape)
        direction.flat[k] = 1
        directions.append((tuple(map(int, np.unravel_index(k, values.shape))), direction))
    if compared < values.size:
        directions.append(("all", rng.choice([-1.0, 1.0], values.shape) / math.sqrt(values.size)))      # as far as one alone
    rows = []
    for where, direction in directions:
        up, down = moved(values + H * direction) / H, -moved(values - H * direction) / H
        backward, difference = float((gradient * direction).sum() if where == "all" else gradient[where]), (up + down) / 2
        scale = max(abs(difference), 1.0)
        error = abs(backward - difference) / scale
        if error > TOLERANCE:       # unless there is a kink, and backward lies between the slopes to both sides
            error = max(error - abs(up - down) / 2 / scale, 0.0)
        rows.append(Row(name, values.shape, compared, where, backward, difference, error))
    return max(rows, key=lambda row: math.inf if math.isnan(row.error) else row.error)
