"""Checks of what a caller hands over, and output sizes. Every message names the argument, what it got and what is expected.

Nothing here touches the data: a public function checks first, and only then allocates and writes.
"""
import math
import numbers
import operator

import numpy as np

from nbcnn.kernels.backend import as_array

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
LARGEST = float(np.finfo(np.float32).max)
MOST = 2**31 - 1        # of a size: the product of two is an int64, as the kernels compute with
MOST_CELLS = 2**32      # that all windows of a plane cover: seconds of a kernel, which nothing interrupts
FEW = 64                # the padding that even the smallest picture may have


def floats(value, name, *layouts):
    """`value` as a float32 or float64 array, of NumPy or of a GPU, whose number of axes is that of one of `layouts`.

    Parameters
    ----------
    value : array_like
    name : str
        What the caller calls it: begins the message.
    *layouts : str
        Accepted layouts, for instance "(N, C, H, W)"; none accepts any number of axes.

    Raises
    ------
    TypeError
        When it is no float32 or float64 array.
    ValueError
        When its number of axes is not one of `layouts`.
    """
    array = as_array(value)
    if array.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float32 or float64 array, got {describe(value, array)}")
    axes(array, name, *layouts)
    return array


def axes(array, name, *layouts):
    """Raise ValueError unless `array` has as many axes as one of `layouts`."""
    if layouts and array.ndim not in [layout.count(",") + (layout[-2:] != ",)") for layout in layouts]:
        raise ValueError(f"{name}: expected shape {' or '.join(layouts)}, got shape {array.shape}")


def same_dtype(x, name, other, other_name):
    """Raise TypeError unless both arrays have the same dtype."""
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype}, the dtype of {other_name}, got {x.dtype}")


def same_shape(x, name, shape, reason):
    """Raise ValueError unless `x` has the given shape; `reason` says where that comes from."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, {reason}, got shape {tuple(x.shape)}")


def describe(value, array):
    """How a message names something of the wrong type."""
    return f"{type(value).__name__}" + (f" of dtype {array.dtype}" if array.dtype != object else "")


def pair(value, name, minimum):
    """An int or a pair of ints as (along H, along W), each at least `minimum` and at most MOST."""
    expected = f"an int or a pair of ints >= {minimum}"
    items = tuple(value) if isinstance(value, tuple | list) or np.ndim(value) else (value, value)
    if any(isinstance(item, bool) for item in items):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    try:
        items = tuple(operator.index(item) for item in items)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from None
    if len(items) != 2 or min(items) < minimum:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    if max(items) > MOST:
        raise ValueError(f"{name}: expected at most {MOST}, got {value!r}")
    return items


def integer(value, name, minimum, maximum=MOST):
    """An int that is at least `minimum` and, unless that is None, at most `maximum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int >= {minimum}, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected an int >= {minimum}, got {value!r}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name}: expected an int <= {maximum}, got {value!r}")
    return number


def four_sizes(value, name):
    """The shape of pictures (N, C, H, W), as ints."""
    try:
        sizes = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a tuple (N, C, H, W), got {value!r}") from None
    if len(sizes) != 4:
        raise ValueError(f"{name}: expected four sizes (N, C, H, W), got {sizes}")
    return tuple(integer(size, name, 0) for size in sizes)


def fraction(value, name):
    """A number in [0, 1]."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number in [0, 1], got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")
    return value


def finite(value, name):
    """A number that is finite in either dtype, as a float."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a finite number, got {value!r}")
    if not abs(value) <= LARGEST:
        raise ValueError(f"{name}: expected a finite number of float32, got {value!r}")
    return float(value)


def nesterov_fits(nesterov, momentum, dampening):
    """Raise ValueError when Nesterov's momentum is asked for without momentum, or with dampening."""
    if nesterov and not (momentum > 0 and dampening == 0):
        raise ValueError("nesterov: expected a momentum > 0 and a dampening of 0, "
                         f"got momentum {momentum!r} and dampening {dampening!r}")


def one_of(value, name, choices):
    """`value`, which must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def conv_size(size, kernel, stride, padding, dilation, name):
    """Output size (OH, OW) of a convolution: floor((in + 2p - d(k-1) - 1) / s) + 1 along each axis."""
    for i, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        _require_padding(p, i, d * (k - 1))
    out = tuple((i + 2 * p - d * (k - 1) - 1) // s + 1
                for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True))
    if min(out) < 1:
        raise ValueError(f"{name}: expected an output of at least 1x1, got {out[0]}x{out[1]} from an input of "
                         f"{size[0]}x{size[1]} with kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
    return out


def pool_size(size, kernel, stride, padding, dilation, ceil_mode, name):
    """Output size (OH, OW) of a pooling; with `ceil_mode` the last window may begin inside, never beyond, the input."""
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        if 2 * p > (k - 1) * d + 1:
            raise ValueError(f"padding: expected at most half the window of (kernel-1)*dilation+1 cells, "
                             f"got padding {padding} for kernel {kernel} with dilation {dilation}")
    for i, p, d in zip(size, padding, dilation, strict=True):
        _require_padding(p, i, d)
    out = []
    for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        o = (i + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        out.append(o - 1 if ceil_mode and (o - 1) * s >= i + p else o)
    if min(out) < 1:
        raise ValueError(f"{name}: expected an output of at least 1x1, got {out[0]}x{out[1]} from an input of "
                         f"{size[0]}x{size[1]} with kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
    for o, i, s, p, d in zip(out, size, stride, padding, dilation, strict=True):
        # start % d is the first cell that a window beginning at start < 0 has inside. It grows with start from -d on, and where it
        # can be outside, a padding of more than FEW is at most d: the last windows tell of all.
        if any(start % d >= i for start in range(-p, min(0, o * s - p), s)[-FEW:]):
            raise ValueError(f"{name}: expected every window to cover a cell, got one with padding only from an input of "
                             f"{size[0]}x{size[1]} with kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
    if math.prod(o * min(k, i) for o, k, i in zip(out, kernel, size, strict=True)) > MOST_CELLS:
        raise ValueError(f"kernel_size: expected windows that cover at most {MOST_CELLS} cells in all, got {out[0]}x{out[1]} "
                         f"windows of {kernel[0]}x{kernel[1]}; a larger stride makes fewer")
    return tuple(out)


def _require_padding(padding, size, window):
    """Raise ValueError when the padding of an axis is larger than what a picture and a window could need: it fills memory."""
    most = max(FEW, size, window)
    if padding > most:
        raise ValueError(f"padding: expected at most {most} for an input of {size} pixels along that axis, got {padding}")
