"""Mutated checkpoints, through `nbcnn.load` and through `nbcnn predict`: a network, or one line; nothing run, hung or filled.

Damaged bytes, headers that lie, and, under a checksum that fits, descriptions with odd values and structures made to do harm.
"""
import contextlib
import copy
import io
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

import nbcnn
from nbcnn import checkpoint, predict, recipes

from campaign.harness import outcomes, survey

EXAMPLES = Path(__file__).parent / "examples"
RUNS = "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "subprocess.Popen", "socket.connect"
NUMBERS = [-1, 0, 1, 2, 3, 8, 9, 1000, 1001, 10**4, 10**5, 10**6, 10**7, 10**9, 10**12, 2**31 - 1, 2**31, 2**32, 2**33, 2**62,
           2**63, 2**64, 10**25, 10**400]
WEIRD = [*NUMBERS, None, True, False, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"), "", "x", "conv", "a\nb",
         "\x1b[2J", "\ud800", "\U0001f600" * 3, "../../etc/passwd", "/dev/zero", "__class__", "__reduce__", "vector", "_forward",
         "layers", "predict", [], {}, [[]], [1, 2], [1, 2, 3], [0, 0], [-1, 4], [2**40, 2**40], [10**9, 10**9], [1, 10**12],
         {"a": 1}, "float16", "float64", "object", "O", ">f4", "Layer", "Parameter", "Conv2d", "ConvPool", "_Activation",
         "MappingProxyType", "inspect", "os", "eval", "Flatten", "MaxPool2d", "x" * 5000]
ENTRIES = ["{}", "null", "[]", '""', "NaN", '{"format": 1}', '{"format": true, "crc32": 0}', "1" * 5000,
           '{"format": ' + "9" * 5000 + "}"]
LENGTHS = [0, 1, 7, 2**16, 10**7, 10**7 + 1, 10**8, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1]
DTYPES = ["F64", "F16", "I64", "BF16", "F8_E4M3", "U8", "BOOL", "XX", "C64", None, 3]
SHAPES = [[], [0], [-1], [2**63], [2**32, 2**32], [2**62, 4], [1], [0, 2**62], None, "x", [3.5], [10**30]]
OFFSETS = [[0, 0], [0, 2**63], [2**64 - 1, 0], [-1, 4], [4, 0], [0, 10**12], [0], [], None]


def networks():
    """Most kinds of layers; and two that take images of any size."""
    yield [("conv", nbcnn.Conv2d(3, 4, 3, padding=1)), ("relu", nbcnn.ReLU()), ("pool", nbcnn.MaxPool2d(2)),
           ("avg", nbcnn.AvgPool2d(2)), ("leaky", nbcnn.LeakyReLU(0.1)), ("gelu", nbcnn.GELU("tanh")),
           ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(16, 3))]
    yield [("average", nbcnn.GlobalAvgPool2d()), ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(3, 3, bias=False))]
    yield [("conv", nbcnn.Conv2d(3, 4, 1, bias=False)), ("average", nbcnn.GlobalAvgPool2d()), ("flatten", nbcnn.Flatten()),
           ("linear", nbcnn.Linear(4, 3)), ("sigmoid", nbcnn.Sigmoid()), ("tanh", nbcnn.Tanh())]


def prepare():
    """Checkpoints as a run writes them, an image, and ears for code that a file runs."""
    folder, bases, run = tempfile.mkdtemp(), [], []
    Image.new("RGB", (16, 12), (200, 100, 0)).save(f"{folder}/image.png")
    for layers in networks():
        model = nbcnn.Sequential(layers, input_shape=(3, 8, 8), mean=[.5] * 3, std=[.2] * 3, classes=["a", "b", "c"])
        optimizer = nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.9)
        nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()).train_step(np.ones((2, 3, 8, 8), np.float32), [0, 1], optimizer)
        checkpoint.save(f"{folder}/file", model, optimizer=optimizer, progress=nbcnn.Progress(1, 0, 0.0, 0, 0.5, 1),
                        options={**recipes.OTHERS, **recipes.RECIPES["default"], "epochs": 3, "dataset": "shapes"})
        bases.append(Path(f"{folder}/file").read_bytes())
        assert predicted(folder)[0] == 0
    for layer in (nbcnn.MaxPool2d(1), nbcnn.ReLU(), nbcnn.Tanh(), nbcnn.Sigmoid(), nbcnn.GELU()):     # the compiler takes memory
        nbcnn.Sequential([layer])(np.zeros((1, 3, 8, 8), np.float32))
    sys.addaudithook(lambda event, arguments: run.append((event, arguments)) if event in RUNS else None)
    return folder, bases, run


def case(shared, rng):
    folder, bases, run = shared
    kind, content = drawn(bases, rng)
    return kind, lambda: timed(folder, content, run, rng.random() < 0.1)


def timed(*arguments):
    """An attempt, in less than two seconds: of two, as a new kind of network is compiled first."""
    for _ in range(2):
        started = time.process_time()
        found = attempt(*arguments)
        spent = time.process_time() - started
        if spent < 2:
            return found
    raise AssertionError(f"{spent:.1f} s, {found}")


def attempt(folder, content, run, always):
    """Load; and predict where that succeeds, or `always`; what came of it."""
    Path(f"{folder}/file").write_bytes(content)
    run.clear()
    try:
        nbcnn.load(f"{folder}/file")
        found = "loaded"
    except ValueError as error:
        found, message = "refused", str(error)
        assert message.startswith(f"{folder}/file: ") and "\n" not in message and len(message) < 500, message
        if not always:
            assert not run, run
            return found
    status, out, err = predicted(folder)
    assert status in ((0, 2) if found == "loaded" else (2,)), (status, err)
    if status == 2:
        assert not out and err.startswith("nbcnn predict: ") and err.count("\n") == 1 and len(err) < 1000, (out, err)
    else:
        assert not err and out.count("\n") == 1, (out, err)
    assert not [c for c in (out + err).replace("\n", "").replace("\t", "") if ord(c) < 32], (out, err)
    assert not run, run
    return f"{found}, {'predicted' if status == 0 else err[:200]}"


def predicted(folder):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = predict.main([f"{folder}/image.png", "--checkpoint", f"{folder}/file"])
    return status, out.getvalue(), err.getvalue()


# ---- what is drawn ----

def drawn(bases, rng):
    """A kind of mutation, and the mutated file."""
    base, kind = rng.choice(bases), rng.choice(["flip", "truncate", "length", "entry", "header", "header", *["about"] * 8,
                                                *["structure"] * 6])
    content = bytearray(base)
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        content = content[:rng.randrange(len(content))] + bytes(rng.choice([0, 0, 5]))
    elif kind == "length":
        content[:8] = struct.pack("<Q", rng.choice(LENGTHS))
    elif kind == "header":
        content = with_header(content, rng)
    else:
        about = json.loads(described(base))
        if kind == "entry":
            depth = rng.choice([1000, 5000, 100_000])
            deep, begun = "[" * depth + "]" * depth, described(base)[:-1]
            entry = rng.choice([*ENTRIES, deep, f'{begun}, "structure": {deep}}}', f'{begun}, "format": 2}}'])
            return kind, to_bytes(from_bytes(base), {"nbcnn": entry})
        tensors = from_bytes(base)
        if kind == "about":
            mutate(about, rng)
        else:
            harmful(about, tensors, rng)
        content = forged(about, tensors)
    return kind, bytes(content)


def described(content):
    """A checkpoint's JSON."""
    return json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]["nbcnn"]


def forged(about, tensors):
    """A checkpoint of any description, with a checksum that fits where that can be."""
    if isinstance(about, dict):
        about.pop("crc32", None)
        about["crc32"] = checkpoint._checksum(about, tensors)
    return to_bytes(tensors, {"nbcnn": json.dumps(about)})


def places(value, path=()):
    """The paths to all that is in a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def mutate(value, rng):
    """Change some of what is in a JSON value, in place."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice([path for path in places(value) if path] or [None])
        if path is None:
            return
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        old, how = parent[path[-1]], rng.randrange(10)
        if how == 0:
            del parent[path[-1]]
        elif how == 1 and isinstance(parent, dict):
            parent[str(rng.choice(WEIRD))] = copy.deepcopy(rng.choice(WEIRD))
        elif how == 2 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(rng.choice(parent)))
        elif how == 3 and isinstance(old, int | float):
            parent[path[-1]] = old * rng.choice([2, -1, 1000, 10**9, 10**15])
        elif how == 4:
            parent[path[-1]] = rng.choice([[old], str(old)])
        else:
            parent[path[-1]] = copy.deepcopy(rng.choice(WEIRD))


def with_header(content, rng):
    """The file with a header that lies."""
    size, = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8:8 + size]), content[8 + size:]
    if rng.random() < 0.4:
        mutate(header, rng)
    tensor = header.get(rng.choice([name for name in header if name != "__metadata__"] or ["none"]))
    if isinstance(tensor, dict):
        name, values = rng.choice([("dtype", DTYPES), ("shape", SHAPES), ("data_offsets", [*OFFSETS, [0, len(data)]])])
        tensor[name] = rng.choice(values)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def harmful(about, tensors, rng):
    """A structure that would take time or memory, with the parameters it needs as long as these are small."""
    size, pad, step = rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice([1, 1, 2, *NUMBERS])
    pad = rng.choice([pad, size // 2])
    layer = rng.choice([
        ["MaxPool2d", {"kernel_size": size, "padding": pad, "stride": step, "ceil_mode": rng.random() < 0.5}],
        ["MaxPool2d", {"kernel_size": [size, 1], "padding": [pad, 0], "stride": 1}],
        ["MaxPool2d", {"kernel_size": rng.choice([2, 3, 9]), "dilation": size, "padding": pad, "stride": step}],
        ["AvgPool2d", {"kernel_size": size, "padding": pad, "stride": step}],
        ["AvgPool2d", {"kernel_size": 1, "divisor_override": size}],
        ["LeakyReLU", {"negative_slope": rng.choice([1e308, size, -1e38, 1e-45])}],
        ["Conv2d", {"in_channels": 3, "out_channels": 3, "kernel_size": rng.choice([1, 2, 3, size]), "padding": pad,
                    "stride": step, "dilation": rng.choice([1, size])}],
        ["Conv2d", {"in_channels": 3, "out_channels": size, "kernel_size": 1}],
        ["Linear", {"in_features": size, "out_features": pad}],
    ])
    if layer[0] == "Conv2d" and 0 < layer[1]["out_channels"] < 1000 and 0 < layer[1]["kernel_size"] < 100:
        shape = layer[1]["out_channels"], 3, *[layer[1]["kernel_size"]] * 2
        tensors.update({"new.weight": np.full(shape, 0.1, np.float32), "new.bias": np.zeros(shape[0], np.float32)})
    for k in range(rng.choice([1, 1, 1, 2, 6])):
        if k == 0 or not layer[0] == "Conv2d":
            about["structure"].insert(rng.randrange(2), [f"new{k or ''}", *layer])
    if rng.random() < 0.3:
        about["input_shape"] = rng.choice([[3, size, pad], [1, size, size], [3, 1000, 1000], [3, 16000, 16000], [size, 8, 8],
                                           [3, 1, 1], [size], [], [3, 8], None])
    if rng.random() < 0.1:
        about["structure"] = [[f"relu{k}", "ReLU", {}] for k in range(rng.choice([1000, 4900, 20_000]))] + about["structure"]


# ---- tests ----

def test_mutated_checkpoints(full, seed):
    records = survey(__name__, 100_000 if full else 100, seed)
    odd = [record for record in records if record["outcome"] != "ok" or record["bytes"] > 10**9]
    assert not odd, (outcomes(records), odd[:5])
    found = {record["message"].split(",")[0] for record in records}
    assert found == {"loaded", "refused"} and any(record["message"].endswith("predicted") for record in records)


@pytest.mark.parametrize(("name", "message"), [
    ("hang", "kernel_size: expected an int <= 2147483647, got 1000000000000000"),
    ("mem", "c: padding: expected at most 64 for an input of 8 pixels along that axis, got 10000"),
    ("div", "divisor_override: expected an int <= 2147483647, got 9223372036854775808"),
    ("sys", "kernel_size: expected an int <= 2147483647, got 8589934592"),
    ("bigstride", "stride: expected an int <= 2147483647, got 18446744073709551616"),
])
def test_files_that_once_hung_or_filled_the_machine(name, message):
    with pytest.raises(ValueError, match=f"{name}.st: not a readable checkpoint: {message}$"):
        nbcnn.load(os.path.relpath(EXAMPLES / f"{name}.st"))
