"""Assembly of the kernels for a unit that this processor may lack: python units.py amx|avx512bf16. Nothing of it is run.

Prints a JSON object: for each kernel that multiplies, of what instructions there are how many, lines of its innermost loops around
a product that keep vectors in memory, and how often references to arrays are counted in any loop around one.
"""
import collections
import ctypes
import json
import os
import re
import sys
from unittest.mock import patch

AVX512 = "+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512bf16"
TARGETS = {"amx": ("sapphirerapids", f"{AVX512},+amx-tile,+amx-bf16"), "avx512bf16": ("znver4", AVX512)}
SPILL = re.compile(r"\bv\w+\s.*%zmm.*\(%rsp\)|\bv\w+\s.*\(%rsp\).*%zmm")
PRODUCT = re.compile(r"\b(?:tdpbf16ps|vdpbf16ps)\b")


def loops(assembly):
    """(lines, whether it is an innermost one) of each loop: from a label to the last jump back to it."""
    lines = assembly.splitlines()
    labels = {match[1]: k for k, line in enumerate(lines) if (match := re.match(r"(\.LBB\w+):", line))}
    back = collections.defaultdict(int)
    for k, line in enumerate(lines):
        if (match := re.search(r"\tj\w+\t(\.LBB\w+)", line)) and labels.get(match[1], k) < k:
            back[labels[match[1]]] = k
    for start, end in back.items():
        yield lines[start:end + 1], not any(start < other <= end for other in back)


def looked_at(assembly):
    """What there is to say of a kernel."""
    names = re.findall(r"^\s+(tdpbf16ps|tileloadd|tilestored|tilezero|ldtilecfg|tilerelease|vdpbf16ps)\b", assembly, re.MULTILINE)
    around = [(loop, innermost) for loop, innermost in loops(assembly) if any(map(PRODUCT.search, loop))]
    spills = [line.strip() for loop, innermost in around if innermost for line in loop if SPILL.search(line)]
    counted = sum("NRT_" in line for loop, _ in around for line in loop)     # in memory that all threads share
    return {**collections.Counter(names), "spills": spills, "references": counted}


def main(unit):
    os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = TARGETS[unit]
    os.environ["NBCNN_UNIT"] = unit
    import numba
    import numpy  # noqa: F401
    # The operating system may not have the tiles.
    with patch.object(ctypes, "CDLL", lambda *_, **__: type("System", (), {"syscall": lambda *_: 0})()):
        from nbcnn.kernels import cpu
        from nbcnn.kernels.cpu import matrix_tile
    import nbcnn
    assert matrix_tile.UNIT == unit
    found, models = {}, [
        nbcnn.models.cifar10_quick(), nbcnn.Sequential([
            nbcnn.Conv2d(3, 16, 3, padding=1), nbcnn.Conv2d(16, 16, 3, padding=1), nbcnn.Conv2d(16, 32, 3), nbcnn.MaxPool2d(2),
            nbcnn.Conv2d(32, 16, 3), nbcnn.MaxPool2d(2), nbcnn.Flatten(), nbcnn.Linear(16 * 2 * 2, 10)], input_shape=(3, 16, 16))]
    for model in models:
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision="bf16")
        step.plan(model.input_shape)
        step.reserve(64, backward=True)
        for _, (kernel, arguments, _) in step.forward_calls(64) + step.backward_calls(64):
            body = getattr(kernel, "body", None)
            if body is None or "matrix_tile" not in body.py_func.__code__.co_names:
                continue
            signature = tuple(map(numba.typeof, arguments))
            key = f"{body.py_func.__name__} {[cell.cell_contents for cell in body.py_func.__closure__ or ()]}"
            if key not in found:
                body.compile(signature)
                found[key] = looked_at(body.inspect_asm()[signature])
    assert not any(kernel.signatures for kernel in vars(cpu).values() if hasattr(kernel, "signatures"))
    # The others are made for float32.
    print(json.dumps({key: counts for key, counts in found.items() if counts.keys() & {"tdpbf16ps", "vdpbf16ps"}}))


if __name__ == "__main__":
    main(sys.argv[1])
