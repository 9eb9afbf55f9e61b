"""A look at the code that Numba makes of a kernel."""
import re

import numba
from numba import types


def afresh(kernel):
    """What a kernel runs on each thread, with nothing compiled yet: code that loads from the cache cannot be looked at."""
    body = getattr(kernel, "body", kernel)
    return numba.jit(**body.targetoptions)(body.py_func)


def double_operations(kernel):
    """Lines of double arithmetic in the float32 specialisations of a jitted kernel, each compiled afresh.

    The kernel must have been called with float32 arrays before: the signatures are those of real calls, so a Python
    float that a caller hands over shows as well.
    """
    signatures = [signature for signature in kernel.signatures if any(_is_float32(argument) for argument in signature)]
    if not signatures:
        raise ValueError(f"{kernel.py_func.__name__} has not been called with float32")
    fresh = afresh(kernel)
    lines = []
    for signature in signatures:
        fresh.compile(signature)
        # The wrapper that Python calls boxes a float32 result into a Python float: not the kernel's doing.
        functions = re.split(r"^(?=define )", fresh.inspect_llvm(signature), flags=re.MULTILINE)
        lines += [line.strip() for function in functions[1:] if "@_ZN7cpython" not in function.partition("\n")[0]
                  for line in function.splitlines() if re.search(r"\bdouble\b", line)]
    return lines


def _is_float32(argument):
    return getattr(argument, "dtype", argument) == types.float32
