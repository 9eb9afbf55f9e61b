"""bfloat16, the upper half of a float32: how NumPy holds it, which has no such dtype."""
import numpy as np

BFLOAT16 = np.dtype(np.uint16)      # no other numbers are uint16 here


def to_bfloat16(x):
    """float32 numbers rounded to nearest even; NaN stays NaN, whatever it carries.

    >>> [hex(bits) for bits in to_bfloat16(np.array([1, 1.00390625, 1.01171875, np.inf, np.nan], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7f80', '0x7fc0']
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = bits + (np.uint32(0x7fff) + (upper & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), upper | np.uint32(0x40), rounded).astype(BFLOAT16)


def from_bfloat16(bits):
    """The float32 numbers that are exactly these.

    >>> from_bfloat16(np.array([0x3f80, 0xc040], np.uint16)).tolist()
    [1.0, -3.0]
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def numbers(array):
    """An array of numbers, bfloat16 as a float32 copy."""
    return from_bfloat16(array) if array.dtype == BFLOAT16 else array
