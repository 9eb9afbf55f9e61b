"""Which unit of the processor multiplies bfloat16: chosen once, when the kernels that need one are loaded.

    amx           Intel's matrix unit (Xeon since 2023): tiles of 16 rows x 64 bytes
    avx512bf16    vectors of 16 sums, two products each (AMD since Zen 4, Intel)
    emulated      the plain definition, slow, on any processor: what tests run

A unit is at hand where Numba compiles for it and, for amx, where the operating system lets this process have the tiles.
"""
import ctypes
import functools
import os
import sys

from nbcnn.kernels.cpu.tile import FEATURES

VARIABLE = "NBCNN_UNIT"
NEEDS = {"amx": {"+amx-tile", "+amx-bf16"}, "avx512bf16": {"+avx512bf16", "+avx512f"}}   # Numba's names for them
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18        # Linux's numbers on x86-64


@functools.cache
def tiles_granted():
    """Whether Linux gives this process the tile registers, which it does once, for all threads."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0


@functools.cache
def at_hand():
    """The units of this processor, the fastest first."""
    return [name for name, needed in NEEDS.items() if needed <= FEATURES and (name != "amx" or tiles_granted())]


@functools.cache
def unit_in_use():
    """The unit to be used, or None. NBCNN_UNIT chooses among those at hand, or "emulated".

    Raises
    ------
    ValueError
        When the variable names none of these.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in (*at_hand(), "emulated"):
        raise ValueError(f"{VARIABLE}: expected {' or '.join((*at_hand(), 'emulated'))} on this processor, got {wanted!r}")
    return wanted or next(iter(at_hand()), None)


def compiled_for():
    """The unit that kernels are compiled for: the one to be used, or the definition, which can be looked at on any processor."""
    try:
        return unit_in_use() or "emulated"
    except ValueError:      # said where precision="bf16" is asked for, not where nbcnn is imported
        return "emulated"
