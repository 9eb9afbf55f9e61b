"""Images as stored, one byte a value, to a network's floating-point input."""
import numpy as np

from nbcnn.kernels.arguments import axes, describe, finite_row, float_dtype, floats, integer, ints, one_of, same_dtype, same_shape
from nbcnn.kernels.backend import as_array, backend_of, load_backend, on_device, on_host
from nbcnn.kernels.cpu import images as cpu
from nbcnn.kernels.cpu.launch import launch
from nbcnn.kernels.docs import documented
from nbcnn.kernels.shown import shown

__all__ = ["normalization_table", "load_images", "normalize_images"]

BORDERS = "zero", "reflect"


@documented()
def normalization_table(mean, std, channels, dtype):
    """What each byte v of each channel c becomes: (v / 255 - mean[c]) / std[c], computed in float64, rounded once.

    Parameters
    ----------
    mean, std : sequence of `channels` floats, or None
        Finite, std positive; in units of the pixel range [0, 1]. None stands for 0 and 1.
    channels : int
    dtype : float32 or float64

    Returns
    -------
    table : float array (channels, 256)

    >>> float(normalization_table([0.5, 0.0], [0.25, 1.0], 2, np.float32)[0, 255])
    2.0
    """
    dtype, channels = float_dtype(dtype, "dtype"), integer(channels, "channels", 0)
    mean = finite_row(np.zeros(channels) if mean is None else mean, "mean", channels)
    std = finite_row(np.ones(channels) if std is None else std, "std", channels)
    if not (std > 0).all():
        raise ValueError(f"std: expected positive numbers, got {shown(std.tolist())}")
    with np.errstate(all="ignore"):     # a std next to 0 gives infinities: no line of NumPy's about it
        return ((np.arange(256) / 255 - mean[:, None]) / std[:, None]).astype(dtype)


@documented()
def load_images(out, images, index, flip, shift, table, *, border="zero", cutout=0, corners=None):
    """Gather, flip, shift and normalise images, written straight to where a network reads them.

    out[b, c, i, j] = table[c, v], where v is the byte of image index[b] that its flip and its shift bring to (i, j), or 0 where the
    cutout lies. Exact: every value is one of table's or 0, and the same for any number of threads. Source of the cutout: T. DeVries
    and G. W. Taylor, Improved regularization of convolutional neural networks with cutout, 2017.

    Parameters
    ----------
    out : float array (B, C, H, W)
        Written; any strides, usually a view of channels-last memory, for which the loops are made.
    images : uint8 array (M, C, H, W)
    index : int array (B,)
        Which images, in [0, M), in any order, as often as one likes.
    flip : bool array (B,)
        Which of them to mirror left to right, before the shift.
    shift : pair of ints, or int array (B, 2)
        (dy, dx): the whole batch, or each image, moves dy pixels down and dx to the right, at most H and W; with the border
        "reflect" at most H - 1 and W - 1.
    table : array (C, 256) of out's dtype
        From `normalization_table`.
    border : {"zero", "reflect"}
        What fills the gap that a shift leaves: byte 0, before it is normalised, or the image reflected at its first or last row
        and column, as torch.nn.functional.pad does it.
    cutout : int
        The side of a square of zeros, of normalised pixels, in each image; 0 for none.
    corners : pair of ints, or int array (B, 2)
        With a cutout: (row, column) of the square's upper left pixel, in the image as it is after the shift, for the whole batch or
        for each image; from -cutout to H and W. What lies beside the image is left out.

    Raises
    ------
    IndexError
        A number of index is out of range; the message says which.

    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    >>> index, flip, shift = np.array([4, 0, 4]), np.array([True, False, False]), np.array([[1, -2], [0, 0], [-3, 5]])
    >>> corners = np.array([[-1, 2], [3, 5], [0, 0]])
    >>> table = normalization_table([0.4, 0.5, 0.6], None, 3, np.float32)
    >>> expected, out = np.empty((2, 3, 3, 4, 6), np.float32)
    >>> for border in "zero", "reflect":
    ...     for b, c, i, j in np.ndindex(out.shape):
    ...         r, s = i - shift[b, 0], j - shift[b, 1]
    ...         if border == "reflect":
    ...             r, s = 3 - abs(3 - abs(r)), 5 - abs(5 - abs(s))
    ...         inside = 0 <= r < 4 and 0 <= s < 6
    ...         if flip[b]:
    ...             s = 5 - s
    ...         expected[b, c, i, j] = table[c, images[index[b], c, r, s] if inside else 0]
    ...         if 0 <= i - corners[b, 0] < 2 and 0 <= j - corners[b, 1] < 2:
    ...             expected[b, c, i, j] = 0
    ...     load_images(out, images, index, flip, shift, table, border=border, cutout=2, corners=corners)
    ...     print(np.array_equal(out, expected))
    True
    True
    """
    backend = backend_of(out=out, images=images, index=index, flip=flip, table=table)
    array = floats(out, "out", "(B, C, H, W)")
    if not on_device(out) and not (isinstance(out, np.ndarray) and array.flags.writeable):
        raise ValueError("out: expected a writable NumPy array, got a read-only one or a list")
    out, images = array, _array(images, "images", np.uint8, "(M, C, H, W)")
    batch, channels, height, width = out.shape
    same_shape(out, "out", (batch, *images.shape[1:]), "B and the images' (C, H, W)")
    index = _array(index, "index", np.integer, "(B,)")
    same_shape(index, "index", (batch,), "out's B")
    chosen = on_host(index)
    bad = np.flatnonzero((chosen < 0) | (chosen >= len(images)))
    if bad.size:
        raise IndexError(f"index: expected numbers in [0, {len(images)}), got {chosen[bad[0]]} at position {bad[0]}")
    flip = _array(flip, "flip", np.bool_, "(B,)")
    same_shape(flip, "flip", (batch,), "out's B")
    reflect = one_of(border, "border", BORDERS) == "reflect"
    furthest = max(height - reflect, 0), max(width - reflect, 0)
    shift = _pairs(shift, "shift", batch, [-most for most in furthest], furthest)
    cutout, squares = integer(cutout, "cutout", 0), np.zeros((batch, 2), np.int64)
    if cutout:
        squares[...] = _pairs(corners, "corners", batch, (-cutout, -cutout), (height, width))
    table = floats(table, "table", "(C, 256)")
    same_shape(table, "table", (channels, 256), "out's C and one value per byte")
    same_dtype(table, "table", out, "out")

    if on_device(out):
        return backend.images.gather(out, images, chosen, flip, shift, reflect, cutout, squares, table)
    if not images.flags.c_contiguous:     # copy only what is asked for
        images, index = np.ascontiguousarray(images[index]), np.arange(batch)
    images = images.view()
    images.flags.writeable = False        # so that writable and read-only images share one compilation
    launch(cpu.gather, out, images, np.ascontiguousarray(index, np.int64), np.ascontiguousarray(flip), shift, reflect,
           np.ascontiguousarray(table))
    if cutout:
        launch(cpu.cut_out, out, squares, cutout)


@documented()
def normalize_images(out, images, table):
    """Normalise images in their order, unchanged otherwise: `load_images` without flips or shift.

    Parameters
    ----------
    out : float array (N, C, H, W)
        Written; any strides.
    images : uint8 array (N, C, H, W)
    table : array (C, 256) of out's dtype

    >>> images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    >>> out = np.empty(images.shape)
    >>> normalize_images(out, images, normalization_table(None, None, 3, np.float64))
    >>> np.array_equal(out, images / 255)
    True
    """
    shape = _array(images, "images", np.uint8, "(N, C, H, W)").shape
    same_shape(as_array(out, "out"), "out", shape, "that of the images")
    index, flip = np.arange(shape[0]), np.zeros(shape[0], bool)
    if on_device(out):
        index, flip = map(load_backend("cuda").to_device, (index, flip))
    load_images(out, images, index, flip, (0, 0), table)


def _array(value, name, dtype, layout):
    """`value` as an array whose dtype is (a kind of) `dtype` and whose axes fit `layout`."""
    array = as_array(value, name)
    if not np.issubdtype(array.dtype, dtype):
        raise TypeError(f"{name}: expected an array of dtype {dtype.__name__}, got {describe(value, array)}")
    axes(array, name, layout)
    return array


def _pairs(value, name, batch, least, most):
    """`value`, a pair of ints or an int array (B, 2), each pair between `least` and `most`, as an int64 array (1, 2) or (B, 2)."""
    array = on_host(as_array(value, name))
    if array.ndim == 2:
        same_shape(_array(array, name, np.integer, "(B, 2)"), name, (batch, 2), "out's B, and a pair of each")
    else:
        array = np.array([ints(value, name, "a pair of ints, or an int array (B, 2)", count=2)])
    bad = np.flatnonzero(((array < least) | (array > most)).any(1))
    if bad.size:
        raise ValueError(f"{name}: expected pairs from {tuple(least)} to {tuple(most)}, got {tuple(array[bad[0]].tolist())}"
                         f"{f' at position {bad[0]}' if len(array) > 1 else ''}")
    return np.ascontiguousarray(array, np.int64)
