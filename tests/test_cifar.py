"""CIFAR-10's and CIFAR-100's two official formats: read whole, refused where damaged."""
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.datasets import cifar, cifar10, cifar100, find_cifar10, find_cifar100
from nbcnn.datasets.cifar import BATCHES, CIFAR100, Python

from pickles import NAMES, array, integer, listed, mapping, python_batch, python_meta, string

BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """(folder with both versions, images, labels); one python batch is in Fortran order."""
    folder = tmp_path_factory.mktemp("official")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60_000, dtype=np.uint8)
    pixels = np.zeros((60_000, 3072), np.uint8)
    pixels[::37] = rng.integers(0, 256, (len(pixels[::37]), 3072), dtype=np.uint8)
    (folder / BINARY).mkdir()
    (folder / PYTHON).mkdir()
    for k, name in enumerate(BATCHES):
        part = slice(10_000 * k, 10_000 * (k + 1))
        np.hstack([labels[part, None], pixels[part]]).tofile(folder / BINARY / f"{name}.bin")
        (folder / PYTHON / name).write_bytes(python_batch(labels[part].tolist(), pixels[part], fortran=k == 1))
    (folder / BINARY / "batches.meta.txt").write_bytes(b"\n".join(NAMES) + b"\n\n")
    (folder / PYTHON / "batches.meta").write_bytes(python_meta())
    yield folder, pixels.reshape(-1, 3, 32, 32), labels
    shutil.rmtree(folder)       # 370 MB


@pytest.fixture
def damaged(official, tmp_path):
    """damaged(version, name, content): a folder whose file of that name has other content, or, for None, is missing."""
    def make(version, name, content):
        for path in (official[0] / version).iterdir():
            os.link(path, tmp_path / path.name)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return tmp_path
    return make


@pytest.mark.parametrize("version", [BINARY, PYTHON])
def test_reads_every_image(official, version):
    folder, images, labels = official
    train, test = cifar10(folder / version)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert np.array_equal(np.concatenate([train.images, test.images]), images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.labels.dtype == np.int64 and train.images.dtype == np.uint8
    assert train.classes == test.classes == [name.decode() for name in NAMES]


def test_prefers_the_binary_version(official, tmp_path):
    folder = official[0]
    assert find_cifar10(folder) == (folder / BINARY, "binary")
    assert find_cifar10(str(folder / PYTHON)) == (folder / PYTHON, "python")
    (tmp_path / PYTHON).symlink_to(folder / PYTHON)
    assert find_cifar10(tmp_path) == (tmp_path / PYTHON, "python")
    assert np.array_equal(cifar10(folder)[1].images[0], official[1][50_000])


def test_missing_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert find_cifar10(folder) is None
        with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 there; looked for data_batch_1\.bin and .*data get cifar10,"):
            cifar10(folder)


@pytest.mark.parametrize("version, name", [(BINARY, "data_batch_3.bin"), (BINARY, "batches.meta.txt"),
                                           (PYTHON, "test_batch"), (PYTHON, "batches.meta")])
def test_missing_file(damaged, version, name):
    with pytest.raises(FileNotFoundError, match=f"lacks {name} there; move the folder away, and nbcnn data get cifar10"):
        cifar10(damaged(version, name, None))


@pytest.mark.parametrize("size, where", [
    (30_729_999, "ends at byte 30729999, 3072 bytes into record 9999"),
    (30_730_001, "ends at byte 30730001, 1 bytes into record 10000"),
    (9_999 * 3073, "ends at byte 30726927, 0 bytes into record 9999"),
    (10_000 * 3072, "ends at byte 30720000, 2292 bytes into record 9996"),
    (0, "ends at byte 0, 0 bytes into record 0")])
def test_binary_of_the_wrong_size(damaged, size, where):
    with pytest.raises(ValueError, match=f"data_batch_1.bin: expected 30730000 bytes, 10000 records of 3073, .*{where}"):
        cifar10(damaged(BINARY, "data_batch_1.bin", bytes(size)))


def test_binary_label_out_of_range(damaged):
    content = bytearray(30_730_000)
    content[7 * 3073] = 10
    content[8 * 3073] = 255
    with pytest.raises(ValueError, match=r"test_batch.bin: byte 21511: expected a label from 0 to 9 for record 7, got 10"):
        cifar10(damaged(BINARY, "test_batch.bin", bytes(content)))


@pytest.mark.parametrize("content", [b"", b"airplane\nautomobile\n", b"\n".join([*NAMES, b"zebra"])])
def test_binary_class_names(damaged, content):
    with pytest.raises(ValueError, match=r"batches.meta.txt: expected 10 class names, got (0|2|11)$"):
        cifar10(damaged(BINARY, "batches.meta.txt", content))


def test_python_label_out_of_range(damaged):
    labels = [0] * 10_000
    labels[4321], labels[5000] = 10, 11
    content = python_batch(labels, np.zeros((10_000, 3072), np.uint8))
    folder = damaged(PYTHON, "data_batch_1", content)
    with pytest.raises(ValueError, match=r"data_batch_1: byte \d+: expected a label .* for record 4321, got 10") as error:
        cifar10(folder)
    byte = int(str(error.value).split("byte ")[1].split(":")[0])
    assert content[byte:byte + 2] == b"K\x0a"


PIXELS = np.zeros((10_000, 3072), np.uint8)


@pytest.mark.parametrize("content, message", [
    (lambda: python_batch([0] * 9_999, PIXELS), "got 9999 labels"),
    (lambda: python_batch([0] * 9_999, PIXELS[1:]), r"got 9999 labels and 30716928 bytes of shape \(9999, 3072\)"),
    (lambda: python_batch([0] * 10_000, PIXELS[:, 1:]), r"of shape \(10000, 3071\)"),
    (lambda: mapping(labels=listed([integer(0)] * 10_000), data=array(10_000, 3072, b"short")), "and 5 bytes of shape"),
    (lambda: mapping(labels=listed([integer(0)] * 10_000), data=array(10_000, 3072, bytes(8), b"O8")), "table of uint8 'data'"),
    (lambda: mapping(labels=listed([listed([])] * 10_000), data=array(10_000, 3072, PIXELS.tobytes())), "whole numbers 'labels'"),
    (lambda: mapping(labels=listed([integer(0)] * 10_000)), "table of uint8 'data'"),
    (lambda: b"\x80\x02K\x01.", "expected a dict"),
    (lambda: python_batch([0] * 10_000, PIXELS)[:20_000_000], r"data_batch_1: byte 20000000: no pickle"),
    (lambda: b"", "byte 0: no pickle"),
    (lambda: b"\x80\x02}\xfe", "byte 4: no pickle"),
], ids=range(11))
def test_python_batch_damaged(damaged, content, message):
    with pytest.raises(ValueError, match=message) as error:
        cifar10(damaged(PYTHON, "data_batch_1", content()))
    assert "data_batch_1" in str(error.value)


def test_python_class_names(damaged):
    with pytest.raises(ValueError, match=r"batches.meta: expected 10 class names, got 3$"):
        cifar10(damaged(PYTHON, "batches.meta", python_meta(NAMES[:3])))


CODE = b"open('ran','w')"


@pytest.mark.parametrize("refused, attack", [
    ("to load 'os.system'", b"cos\nsystem\n" + string(b"touch ran") + b"\x85R."),
    ("to load 'builtins.eval'", b"cbuiltins\neval\n" + string(CODE) + b"\x85R."),
    ("to load 'builtins.eval'", b"\x8c\x08builtins\x8c\x04eval\x93" + string(CODE) + b"\x85R."),
    ("operation b'i'", b"(" + string(CODE) + b"ibuiltins\neval\n."),
    ("operation b'o'", b"(" + string(CODE) + b"o."),
    ("operation b'\\\\x82'", b"\x82\x01."), ("operation b'P'", b"Pran\n."), ("operation b'2'", b"N2."),
    ("to load 'numpy.core.multiarray.fromfile'", b"cnumpy.core.multiarray\nfromfile\n" + string(b"ran") + b"\x85R."),
    ("to load 'numpy.core.multiarray.scalar'", b"cnumpy.core.multiarray\nscalar\n" + string(b"ran") + b"\x85R."),
    ("to load 'numpy.load'", b"cnumpy\nload\n" + string(b"ran") + b"\x85R."),
    ("to load 'numpy.ndarray.tofile'", b"cnumpy\nndarray.tofile\n."),
    ("to load 'numpy.core.multiarray._reconstruct.__globals__'", b"cnumpy.core.multiarray\n_reconstruct.__globals__\n."),
    (r"to load 'os\\n\\x1b\[\.system'", b"\x8c\x05os\n\x1b[\x8c\x06system\x93."),
    ("a call with a bytes", b"cnumpy\ndtype\n" + string(b"x") + b"R."),
    ("to use a list twice", b"]q\x00h\x00a."), ("to use a Pickled twice", b"cnumpy\ndtype\n)Rq\x00h\x00b."),
], ids=range(17))
@pytest.mark.parametrize("file", ["data_batch_1", "batches.meta"])
def test_no_pickled_code_runs(damaged, monkeypatch, file, refused, attack):
    folder = damaged(PYTHON, file, b"\x80\x02" + attack)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"{file}: byte [0-9]+: no pickle of CIFAR: refused {refused}"):
        cifar10(folder)
    assert not (folder / "ran").exists()


# Of each of these, too, some readers die, some never come back, and some take all memory. A process of its own tries them.

def nested(levels):
    """A list of ten times the same list of ten times the same list ...: with a repr of 10^levels items."""
    lists = [b"](" + b"h%c" % (7 + k) * 10 + b"eq%c0" % (8 + k) for k in range(levels)]
    return b"](K\x00eq\x070" + b"".join(lists) + b"h%c" % (7 + levels)


def batch(labels=None, shape=b"M\x0a\x00M\x00\x0c\x86", end=b"\x89"):
    """A batch of ten images with other operations in places."""
    content = python_batch([0] * 10, np.zeros((10, 3072), np.uint8))
    content = content.replace(b"K\x0aM\x00\x0c\x86", shape).replace(b"\x89T", end + b"T")
    return content if labels is None else content.replace(b"K\x00" * 10, labels, 1)


MILLION = 10**6
HOSTILE = {
    "copies of a text": b"X" + (10**6).to_bytes(4, "little") + b"x" * 10**6 + b"q\0c_codecs\nencode\nq\1X\6\0\0\0latin1q\2("
                        + b"h\1h\0h\2\x86R" * 1000 + b"t.",
    "copies of a key": b"C\xff" + b"x" * 255 + b"q\0}(" + b"h\0K\1" * 90_000 + b"u.",
    "a tuple in a tuple ...": b")" + b"\x85" * MILLION + b".",
    "... as a key": b"})" + b"\x85" * MILLION + b"Ns.",
    "a list in a list ...": b"]" * MILLION + b"a" * (MILLION - 1) + b".",
    "21 lists in lists": b"\x80\x02" + b"]" * 25 + b"a" * 24 + b".",
    "a record in a record ...": b"cnumpy\ndtype\n)R" * 30 + b"b" * 29 + b".",
    "a hash that never ends": b"})" + b"2\x86" * 60 + b"Ns.",
    "the same by the memo": b"})" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(60)) + b"Ns.",
    "a tuple as a key": b"})Ns.",
    "a number as a key": b"}K\x01Ns.",
    "a key too many": b"}(" + string(b"labels") + b"u.",
    "a list that holds itself": b"]q\x00h\x00a.",
    "a list that doubles itself": b"]q\x00" + b"(h\x00h\x00e" * 40 + b".",
    "a million copies": b"N" + b"2" * MILLION + b".",
    "a million notes": b"N" + b"".join(b"r" + k.to_bytes(4, "little") for k in range(MILLION)) + b".",
    "a million notes in turn": b"\x80\x04N" + b"\x94" * MILLION + b".",
    "a million marks": b"(" * MILLION + b".",
    "a million dicts": b"}" * MILLION + b".",
    "40 GB of bytes": b"\x80\x05\x96" + (40 * 2**30).to_bytes(8, "little") + b"x.",
    "3 GB of bytes": b"\x80\x05\x96" + (3 * 2**30).to_bytes(8, "little") + b"x.",
    "2^64 - 1 bytes": b"\x80\x04\x8e" + b"\xff" * 8 + b"x.",
    "2^62 bytes": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    "2^40 characters": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "4 GB of text": b"X\xff\xff\xff\xffx.",
    "-1 bytes": b"T\xff\xff\xff\xffx.",
    "a frame of 2^62 bytes": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",
    "a number of -1 bytes": b"\x8b\xff\xff\xff\xff.",
    "a number of 255 bytes": batch(b"\x8a\xff" + b"\x7f" * 255 + b"K\x00" * 9),
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7fx.",
    "a million digits": b"I" + b"9" * MILLION + b"\n.",
    "a million digits and an L": b"L" + b"9" * MILLION + b"L\n.",
    "a line without an end": b"V" + b"x" * MILLION,
    "a string without quotes": b"Sx\n.", "one quote": b"S'\n.",
    "text that is none": b"X\x02\x00\x00\x00\xff\xff.",
    "text that latin-1 has not": "c_codecs\nencode\nV\u20ac\nVlatin1\n\x86R.".encode("raw-unicode-escape"),
    "a call of bytes": b"c_codecs\nencode\n" + string(b"x") + b"\x85R.",
    "a call of a string": string(b"x") + b")R.", "a state of a string": string(b"x") + b"}b.",
    "a state of a class": b"cnumpy\ndtype\n}b.", "slots of a list": b"](N}S'x'\nK\x01stb.",
    "nothing": b"", "only an end": b".", "no end": b"N", "an end too early": b"0.", "a note of nothing": b"q\x00.",
    "a note that is not there": b"h\x07.", "no mark": b"t.", "an item of nothing": b"Na.", "protocol 255": b"\x80\xff.",
    "an odd byte": b"\xff.",
    "a label of 10^6 items": batch(nested(6) + b"K\x00" * 9), "a label of 10^40 items": batch(nested(40) + b"K\x00" * 9),
    "a shape of 10^9 items": batch(shape=nested(9)), "a shape of nothing": batch(shape=b"M\x0a\x00K\x00\x86"),
    "a label in red": batch(string(b"\x1b[31m") + b"K\x00" * 9), "a label True": batch(b"\x88" + b"K\x00" * 9),
    "a label None": batch(b"N" + b"K\x00" * 9), "a label 1.5": batch(b"G?\xf8" + bytes(6) + b"K\x00" * 9),
    "a label of 9 * 10^18": batch(b"\x8a\x08" + b"\x7f" * 8 + b"K\x00" * 9),
    "too large": 200_000_000, "a pipe": None,
}
TRY = """
import json, resource, sys, time
from pathlib import Path
from nbcnn.datasets.cifar import Python
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 500 * 2**20,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (lambda: Python().read_batch(path, 10, 10), lambda: Python().read_names(path, 10)):
        started, found = time.perf_counter(), "read"
        try:
            read()
        except BaseException as error:
            found = f"{type(error).__name__} {error}"
        print(json.dumps([path.name, found, time.perf_counter() - started]), flush=True)
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What became of each of HOSTILE, {name: [(what, seconds) as a batch, as class names]}, up to one that killed the process."""
    folder, found = tmp_path_factory.mktemp("hostile"), {}
    for name, content in HOSTILE.items():
        if content is None:
            os.mkfifo(folder / name)
        elif isinstance(content, int):
            with open(folder / name, "wb") as file:
                file.truncate(content)
        else:
            (folder / name).write_bytes(content)
    with contextlib.suppress(subprocess.TimeoutExpired), open(folder.with_suffix(".log"), "w") as log:
        subprocess.run([sys.executable, "-c", TRY, folder], stdout=log, timeout=60, env={**os.environ, "NUMBA_NUM_THREADS": "1"})
    for line in folder.with_suffix(".log").read_text().splitlines():
        name, what, seconds = json.loads(line)
        found.setdefault(name, []).append((what.replace(f"{folder}/", ""), seconds))
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_no_pickle_kills_or_fills_or_stops_the_process(tried, name):
    assert len(tried.get(name, [])) == 2, "the process did not get that far"
    for what, seconds in tried[name]:
        error, _, message = what.partition(" ")
        assert error == ("OSError" if name == "a pipe" else "ValueError") and name in message
        assert message.isprintable() and len(message) < 300 and seconds < 2


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_that_python_3_pickled_again(tmp_path, protocol, key, order):
    pixels = np.asarray(np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8), order=order)
    content = {key("labels"): list(range(10)), key("data"): pixels, key("filenames"): [key(f"{k}.png") for k in range(10)]}
    for core in (b"numpy._core.", b"numpy.core."):      # NumPy 2 and 1
        pickled = pickle.dumps(content, protocol)
        path = tmp_path / "data_batch_1"
        path.write_bytes(pickled.replace(b"numpy._core.", core) if protocol < 4 else pickled)
        labels, data = Python().read_batch(path, 10, 10)
        assert list(labels) == list(range(10)) and np.array_equal(data, pixels)
    path.write_bytes(pickle.dumps({**content, key("labels"): [*range(9), 10]}, protocol))
    with pytest.raises(ValueError, match=r"byte \d+: expected a label from 0 to 9 for record 9, got 10") as error:
        Python().read_batch(path, 10, 10)
    byte = int(str(error.value).split("byte ")[1].split(":")[0])
    assert path.read_bytes()[byte:byte + 4] in (b"I10\n", b"K\x0ae" + path.read_bytes()[byte + 3:byte + 4])
    path.write_bytes(pickle.dumps({key("label_names"): [key(name.decode()) for name in NAMES]}, protocol))
    assert Python().read_names(path, 10) == [name.decode() for name in NAMES]


def test_a_batch_in_the_oldest_protocol(tmp_path):
    """As Python 2 writes it: text, with what does not print as \\x and two digits."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    path = tmp_path / "data_batch_1"
    path.write_bytes(
        b"(dp1\nS'labels'\np2\n(lp3\nI6\naL9L\nasS'data'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n(cnumpy\nndarray\np6\n(I0\n"
        b"tS'b'\np7\ntRp8\n(I1\n(I2\nI3072\ntcnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntRp11\n(I3\nS'|'\np12\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(pixels.tobytes())[1:].encode() + b"\np13\ntbs.")
    labels, data = Python().read_batch(path, 2, 10)
    assert labels == [6, 9] and np.array_equal(data, pixels)
    path.write_bytes(path.read_bytes().replace(b"(dp1\n", b"(dp1\nS'title'\nS'\\xe9'\ns").replace(b"aL9L", b"aL10L"))
    with pytest.raises(ValueError, match="data_batch_1: byte unknown: expected a label from 0 to 9 for record 1, got 10"):
        Python().read_batch(path, 2, 10)


@pytest.mark.parametrize("version, name", [(BINARY, "data_batch_2.bin"), (BINARY, "batches.meta.txt"), (PYTHON, "test_batch"),
                                           (PYTHON, "batches.meta")])
def test_a_pipe_is_no_file(damaged, version, name):
    folder = damaged(version, name, None)
    os.mkfifo(folder / name)
    with pytest.raises(OSError, match=f"not a regular file: .*{name}"):
        cifar10(folder)


def test_class_names_that_are_no_end(damaged):
    folder = damaged(BINARY, "batches.meta.txt", b"")
    with open(folder / "batches.meta.txt", "wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match=r"batches.meta.txt: expected 10 class names in at most 10000 bytes, got 1000000000000"):
        cifar10(folder)


@given(st.data())
def test_damage_is_a_value_error(tmp_path_factory, data):
    """Whatever bytes change, a reading ends in names or in a ValueError that names the file."""
    content = bytearray(python_meta())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "batches.meta"
    path.write_bytes(content[:data.draw(st.integers(0, len(content)))])
    try:
        assert all(isinstance(name, str) for name in Python().read_names(path, 10))
    except ValueError as error:
        assert str(error).startswith(str(path))


# ---- CIFAR-100 ----

KINDS = {"fine": 100, "coarse": 20}


@pytest.fixture
def hundred(monkeypatch, tmp_path):
    """(folder with both versions of CIFAR-100, of 30 and 20 images; images; labels by kind)."""
    monkeypatch.setattr(cifar, "RECORDS", 20)
    for versions in CIFAR100.values():
        for version, end in (("binary", ".bin"), ("python", "")):
            monkeypatch.setitem(versions, version, versions[version]._replace(files={f"train{end}": 30, f"test{end}": 20}))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3072), dtype=np.uint8)
    labels = {kind: rng.integers(0, count, 50, dtype=np.uint8) for kind, count in KINDS.items()}
    binary, python = tmp_path / "cifar-100-binary", tmp_path / "cifar-100-python"
    binary.mkdir()
    python.mkdir()
    for name, part in (("train", slice(30)), ("test", slice(30, None))):
        np.hstack([labels["coarse"][part, None], labels["fine"][part, None], pixels[part]]).tofile(binary / f"{name}.bin")
        (python / name).write_bytes(mapping(
            filenames=listed([string(b"a.png")] * 50), data=array(*pixels[part].shape, pixels[part].tobytes()),
            **{f"{kind}_labels": listed(map(integer, labels[kind][part].tolist())) for kind in KINDS}))
    names = {kind: [b"%s_%d" % (kind.encode(), k) for k in range(count)] for kind, count in KINDS.items()}
    for kind in KINDS:
        (binary / f"{kind}_label_names.txt").write_bytes(b"\n".join(names[kind]) + b"\n")
    (python / "meta").write_bytes(mapping(**{f"{kind}_label_names": listed(map(string, names[kind])) for kind in KINDS}))
    return tmp_path, pixels.reshape(-1, 3, 32, 32), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["cifar-100-binary", "cifar-100-python"])
def test_cifar100(hundred, version, kind):
    folder, images, labels = hundred
    train, test = cifar100(folder / version, kind)
    assert len(train) == 30 and len(test) == 20 and np.array_equal(np.concatenate([train.images, test.images]), images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), labels[kind])
    assert train.classes == test.classes == [f"{kind}_{k}" for k in range(KINDS[kind])] and train.name == "cifar100"


def test_where_cifar100_is_looked_for(hundred, tmp_path):
    folder, _, labels = hundred
    assert find_cifar100(folder) == (folder / "cifar-100-binary", "binary")
    assert find_cifar100(folder / "cifar-100-python") == (folder / "cifar-100-python", "python")
    assert np.array_equal(cifar100(folder)[0].labels, labels["fine"][:30])
    (folder / "own" / "train" / "cat").mkdir(parents=True)       # images of one's own
    assert find_cifar100(folder / "own") is None
    with pytest.raises(FileNotFoundError, match=r"own: no CIFAR-100 there; .*; images in train/CLASS/... .* with --dataset folder"):
        cifar100(folder / "own")
    with pytest.raises(FileNotFoundError, match=r"where: no CIFAR-100 there; looked for train\.bin and train, also in cifar-100-.*"
                                                "nbcnn data get cifar100, or download=True, brings it"):
        cifar100(folder / "nowhere")
    with pytest.raises(ValueError, match="labels: expected one of 'fine', 'coarse', got 'rough'"):
        cifar100(folder, "rough")


@pytest.mark.parametrize("kind, byte", [("fine", 3 * 3074 + 1), ("coarse", 3 * 3074)])
def test_cifar100_label_out_of_range(hundred, kind, byte):
    folder, _, labels = hundred
    path = folder / "cifar-100-binary" / "train.bin"
    content = bytearray(path.read_bytes())
    content[byte] = KINDS[kind]
    path.write_bytes(content)
    message = rf"expected a label from 0 to {KINDS[kind] - 1} for record 3, got {KINDS[kind]}$"
    with pytest.raises(ValueError, match=rf"train\.bin: byte {byte}: {message}"):
        cifar100(folder, kind)
    path = folder / "cifar-100-python" / "train"
    numbers = labels[kind][:30].tolist()
    content = path.read_bytes()
    content = content.replace(listed(map(integer, numbers)), listed(map(integer, [*numbers[:3], KINDS[kind], *numbers[4:]])))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train: byte \d+: {message}") as error:
        cifar100(path.parent, kind)
    byte = int(str(error.value).split("byte ")[1].split(":")[0])
    assert content[byte:byte + 2] == integer(KINDS[kind])


def test_cifar100_of_the_wrong_size(hundred):
    path = hundred[0] / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test\.bin: expected 61480 bytes, 20 records of 3074, but it ends at byte 61479,"):
        cifar100(path.parent)


def test_a_file_of_cifar100_as_large_as_the_official_one(tmp_path):
    """50,000 images, and each with two labels and a name, as Python 2 wrote them: with a note of each string."""
    names = b"".join(string(b"winter_mushroom_s_%06d.png" % k) + b"r" + k.to_bytes(4, "little") for k in range(50_000))
    path = tmp_path / "train"
    path.write_bytes(mapping(filenames=b"](" + names + b"e", fine_labels=listed([integer(99)] * 50_000),
                             coarse_labels=listed([integer(19)] * 50_000), data=array(50_000, 3072, bytes(50_000 * 3072))))
    assert 155_000_000 < path.stat().st_size < 156_000_000      # the official one has 155,249,918
    labels, pixels = Python("fine_labels", "fine_label_names").read_batch(path, 50_000, 100)
    assert set(labels) == {99} and pixels.shape == (50_000, 3072)
    path.unlink()
