"""Checks of what a caller hands over, and output sizes. Every message names the argument, what it got and what is expected.

`name` is what the caller calls a value: it begins the message. A wrong type raises a TypeError, else it is a ValueError.
Nothing here touches the data: a public function checks first, and only then allocates and writes.
"""
import functools
import itertools
import math
import numbers
import operator
import sys
from collections.abc import Mapping

import numpy as np

from nbcnn.kernels.backend import as_array, on_host
from nbcnn.kernels.shown import one_line, shown

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
LARGEST = float(np.finfo(np.float32).max)
MOST = 2**31 - 1        # of a size: the product of two is an int64, as the kernels compute with
FEW = 64                # the padding that even the smallest image may have
INT64 = 2**63 - 1
SEEDS = 2**128 - 1      # the largest seed
MOST_ITEMS = 1_000_000  # of a sequence: one may have no end


def floats(value, name, *layouts):
    """`value` as a float32 or float64 array, of NumPy or of a GPU, with as many axes as a layout, for instance "(N, C, H, W)"."""
    array = as_array(value, name)
    if array.dtype not in FLOATS:
        hint = f"; write {name}.astype(numpy.float32)" if array.dtype.kind in "biu" else ""
        raise TypeError(f"{name}: expected a float32 or float64 array, got {describe(value, array)}{hint}")
    axes(array, name, *layouts)
    return array


def several_floats(values, name, *layouts):
    """A sequence of at least two arrays as `floats`, all of one dtype: a dict by what messages call them."""
    items = sequence(values, name, "a sequence of float arrays")
    if len(items) < 2:
        raise ValueError(f"{name}: expected at least two arrays, got {len(items)}")
    arrays = {f"{name}[{k}]": floats(item, f"{name}[{k}]", *layouts) for k, item in enumerate(items)}
    first, array = next(iter(arrays.items()))
    for other in arrays:
        same_dtype(arrays[other], other, array, first)
    return arrays


def numeric(value, name, shape=None, reason=""):
    """`value` as an array of real numbers, where it is; of the given shape, for which `reason` says where it comes from."""
    array = as_array(value, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected an array of numbers, got {describe(value, array)}")
    if shape is not None:
        same_shape(array, name, shape, reason)
    return array


def finite_row(value, name, count=None):
    """A sequence of finite numbers, of `count` where that is given, as a float64 array (C,)."""
    array = on_host(numeric(value, name))
    if array.ndim != 1 or count not in (None, len(array)) or not np.isfinite(array).all():
        expected = "finite numbers" if count is None else f"{count} finite numbers"
        raise ValueError(f"{name}: expected {expected}, one per channel, got {shown(value)}")
    return array.astype(np.float64)


def axes(array, name, *layouts):
    """Raise ValueError unless `array` has as many axes as one of `layouts`."""
    if layouts and array.ndim not in [layout.count(",") + (layout[-2:] != ",)") for layout in layouts]:
        raise ValueError(f"{name}: expected shape {' or '.join(layouts)}, got shape {shown(array.shape)}")


def same_dtype(x, name, other, other_name):
    """Raise TypeError unless both arrays have the same dtype."""
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype}, the dtype of {other_name}, got {one_line(str(x.dtype))}; write "
                        f"{name}.astype({other_name}.dtype)")


def same_shape(x, name, shape, reason):
    """Raise ValueError unless `x` has the given shape; `reason` says where that comes from."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, {reason}, got shape {shown(tuple(x.shape))}")


def describe(value, array):
    """How a message names something of the wrong type."""
    return one_line(type(value).__name__ + (f" of dtype {array.dtype}" if array.dtype != object else ""))


def float_dtype(value, name):
    """float32 or float64, as a NumPy dtype."""
    try:
        dtype = np.dtype(value)
    except Exception:
        raise TypeError(f"{name}: expected float32 or float64, got {shown(value)}") from None
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32 or float64, got {one_line(str(dtype))}")
    return dtype


def integer(value, name, minimum=None, maximum=MOST, expected=""):
    """An int from `minimum`, by default -`maximum`, to `maximum`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except Exception:
        number = None
    least = -maximum if minimum is None else minimum
    if number is not None and least <= number <= maximum:
        return number
    if number is not None and number > maximum:
        expected = f"an int <= {maximum}"
    expected = expected or ("an int" if minimum is None and number is None else f"an int >= {least}")
    raise (TypeError if number is None else ValueError)(f"{name}: expected {expected}, got {shown(value)}")


def ints(value, name, expected, minimum=None, count=None):
    """A sequence of ints, of `count` where that is given, as a tuple."""
    items = sequence(value, name, expected)
    if count is not None and len(items) != count:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return tuple(integer(item, name, minimum) for item in items)


def pair(value, name, minimum):
    """An int or a pair of ints as (along H, along W), each at least `minimum` and at most MOST."""
    expected = f"an int or a pair of ints >= {minimum}"
    both = value
    if not isinstance(value, (tuple, list)):
        try:
            both = operator.index(value), value
        except Exception:
            both = sequence(value, name, expected)
    if len(both) != 2:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return tuple(integer(item, name, minimum, expected=expected) for item in both)


def pair_or_none(value, name, minimum):
    """As `pair`, but of a pair each may also be None, which stays."""
    if not isinstance(value, tuple | list):
        return pair(value, name, minimum)
    expected = f"an int or a pair of ints >= {minimum}, or None in a pair"
    if len(value) != 2:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return tuple(None if item is None else integer(item, name, minimum, expected=expected) for item in value)


def four_sizes(value, name):
    """The shape of images (N, C, H, W), as ints."""
    sizes = ints(value, name, "four sizes (N, C, H, W)", 0, 4)
    if math.prod(max(size, 1) for size in sizes) > sys.maxsize // 8:
        raise ValueError(f"{name}: expected the shape of an array that memory can hold, got {shown(sizes)}")
    return sizes


def iterator(value, name, expected):
    """An iterator over the items of a list, or of anything else that has some but a string or a mapping."""
    try:
        if isinstance(value, str | bytes | Mapping):
            raise TypeError
        return iter(value)
    except Exception:
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}") from None


def sequence(value, name, expected):
    """The items of a list, or of anything else that `iterator` takes, as a list."""
    if isinstance(value, (tuple, list)):
        return list(value)
    items = list(itertools.islice(iterator(value, name, expected), MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ValueError(f"{name}: expected {expected}, got more than {MOST_ITEMS:,}")
    return items


def strings(value, name):
    """A sequence of str as a list."""
    items = sequence(value, name, "a sequence of str")
    for item in items:
        instance(item, name, str, "a sequence of str")
    return [str(item) for item in items]        # NumPy's too


def instance(value, name, kind, expected=""):
    """`value`, which must be an instance of a class."""
    if not isinstance(value, kind):
        itself = isinstance(value, type) and isinstance(kind, type) and issubclass(value, kind)
        got = f"the class; write {value.__name__}(...)" if itself else one_line(type(value).__name__)
        raise TypeError(f"{name}: expected {expected or f'a {kind.__name__}'}, got {got}")
    return value


def function(value, name):
    """`value`, which must be None or something to call."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a function, got {shown(value)}")
    return value


def flag(value, name):
    """The truth of a value."""
    try:
        return bool(value)
    except Exception:       # that of an array, for instance
        raise TypeError(f"{name}: expected True or False, got {shown(value)}") from None


def real(value, name, expected, low, high, bools=False):
    """A number between two bounds, as a float."""
    try:
        # A float, the usual case, is one of numbers.Real, and that takes a microsecond to find out.
        if type(value) is not float and (not isinstance(value, numbers.Real) or (isinstance(value, bool) and not bools)):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.nan
    except Exception:
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return number


def fraction(value, name):
    """A number in [0, 1]."""
    return real(value, name, "a number in [0, 1]", 0, 1, bools=True)


def finite(value, name):
    """A number that is finite in either dtype, as a float."""
    return real(value, name, "a finite number of float32", -LARGEST, LARGEST, bools=True)


def rate(value, name, dtype=np.float64):
    """A number that is finite in a dtype and not negative, as a float."""
    return real(value, name, *_finite_and_not_negative(dtype))


@functools.cache
def _finite_and_not_negative(dtype):
    """What `real` is told of that: in words, and both bounds. NumPy takes longer for the upper one than a step's Python."""
    kind = "" if dtype == np.float64 else f" of {np.dtype(dtype)}"
    return f"a finite number{kind} >= 0", 0, float(np.finfo(dtype).max)


def nesterov_fits(nesterov, momentum, dampening):
    """Raise ValueError when Nesterov's momentum is asked for without momentum, or with dampening."""
    if nesterov and not (momentum > 0 and dampening == 0):
        raise ValueError("nesterov: expected a momentum > 0 and a dampening of 0, "
                         f"got momentum {momentum!r} and dampening {dampening!r}")


def one_of(value, name, choices):
    """`value`, which must be one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")
    return value


def several_values(n, shape):
    """Raise ValueError where n samples of a shape have one value of each channel, whose variance would be 0."""
    if n * math.prod(shape[1:]) == 1:
        raise ValueError(f"input: expected more than 1 value per channel when training, got input size {(n, *shape)}")


def winners(argmax, dy, size, of, nobody=None):
    """argmax as an array of NumPy; each must be a cell of a plane or a window, or `nobody`, as kernels follow it without a look."""
    array = as_array(argmax, "argmax")
    if array.dtype.kind not in "iu":
        raise TypeError(f"argmax: expected an array of ints, got {describe(argmax, array)}")
    same_shape(array, "argmax", dy.shape, "that of dy")
    cells, count = on_host(array), math.prod(size)
    outside = (cells < 0) | (cells >= count)
    if nobody is not None:
        outside &= cells != nobody
    if outside.any():
        position = tuple(map(int, np.argwhere(outside)[0]))
        raise IndexError(f"argmax: expected cells from 0 to {count - 1}{'' if nobody is None else f', or {nobody},'} of a {of} of "
                         f"{size[0]}x{size[1]}, got {cells[position]} at position {position}")
    return cells


def conv_padding(value, stride):
    """The padding of a convolution: a pair of ints, or "same" or "valid"."""
    if not isinstance(value, str):
        return pair(value, "padding", 0)
    if value not in ("same", "valid"):
        raise ValueError(f"padding: expected an int or a pair of ints >= 0, 'same' or 'valid', got {shown(value)}")
    if value == "same" and stride != (1, 1):
        raise ValueError(f"padding: expected ints with a stride of {stride}, got 'same', which takes a stride of 1")
    return value


def padding_before(padding, kernel, dilation):
    """How many rows of zeros lie above an image, and how many columns to the left of it.

    With "same" the other two sides may have one more. No kernel needs to know: it knows where an output reads from, and how many
    outputs there are.
    """
    named = {"valid": (0, 0), "same": tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))}
    return named[padding] if isinstance(padding, str) else padding


def conv_size(size, kernel, stride, padding, dilation, name):
    """Output size (OH, OW) of a convolution: floor((in + 2p - d(k-1) - 1) / s) + 1 along each axis; the input's with "same"."""
    if padding == "same":
        kernel, dilation = (1, 1), (1, 1)
    padding = padding_before(padding, kernel, dilation)
    for i, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        _require_padding(p, i, d * (k - 1))
    return _output_size(size, kernel, stride, padding, dilation, False, name)


def adaptive_size(size, output_size, name):
    """Output size (OH, OW) of an adaptive pooling of images that have a pixel: what is asked for, the input's own for None."""
    if min(size) < 1:
        raise ValueError(f"{name}: expected images of at least 1x1, got {size[0]}x{size[1]}")
    return tuple(own if out is None else out for out, own in zip(output_size, size, strict=True))


def pooled_size(size, kernel, stride, padding, dilation, ceil_mode, name):
    """Output size (OH, OW) of a pooling; with `ceil_mode` the last window may begin inside, never beyond, the input."""
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        if 2 * p > (k - 1) * d + 1:
            raise ValueError(f"padding: expected at most half the window of (kernel-1)*dilation+1 cells, "
                             f"got padding {padding} for kernel {kernel} with dilation {dilation}")
    for i, p, d in zip(size, padding, dilation, strict=True):
        _require_padding(p, i, d)
    out = _output_size(size, kernel, stride, padding, dilation, ceil_mode, name)
    for o, i, s, p, d in zip(out, size, stride, padding, dilation, strict=True):
        # start % d is the first cell that a window beginning at start < 0 has inside. It grows with start from -d on, and where it
        # can be outside, a padding of more than FEW is at most d: the last windows tell of all.
        if any(start % d >= i for start in range(-p, min(0, o * s - p), s)[-FEW:]):
            raise ValueError(f"{name}: expected every window to cover a cell, got one with padding only "
                             f"{_from(size, kernel, stride, padding, dilation)}")
    return out


def _output_size(size, kernel, stride, padding, dilation, ceil_mode, name):
    """(OH, OW), which must be at least 1x1."""
    out = []
    for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        o = (i + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        out.append(o - 1 if ceil_mode and (o - 1) * s >= i + p else o)
    if min(out) < 1:
        raise ValueError(f"{name}: expected an output of at least 1x1, got {out[0]}x{out[1]} "
                         f"{_from(size, kernel, stride, padding, dilation)}")
    return tuple(out)


def _from(size, kernel, stride, padding, dilation):
    """How messages end that are about an output."""
    return f"from an input of {size[0]}x{size[1]} with kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"


def _require_padding(padding, size, window):
    """Raise ValueError when the padding of an axis is larger than what an image and a window could need: it fills memory."""
    most = max(FEW, size, window)
    if padding > most:
        raise ValueError(f"padding: expected at most {most} for an input of {size} pixels along that axis, got {padding}")
