"""CIFAR-10's two official formats: read whole, refused where damaged."""
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.datasets import cifar10, find_cifar10
from nbcnn.datasets.cifar10 import BATCHES, _python_classes

NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"


# Python 2 wrote the official pickles with protocol 2. Python 3 cannot: its byte strings look different there.

def string(text):
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + len(text).to_bytes(4, "little") + text


def integer(number):
    return b"K" + bytes([number]) if number < 256 else b"M" + number.to_bytes(2, "little")


def listed(items):
    return b"](" + b"".join(items) + b"e"


def array(rows, columns, data, dtype=b"u1", fortran=False):
    return (ARRAY + b"cnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R(K\x01" + integer(rows) + integer(columns)
            + b"\x86cnumpy\ndtype\n" + string(dtype) + b"K\x00K\x01\x87R(K\x03" + string(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89") + string(data) + b"tb")


def mapping(**items):
    return b"\x80\x02}(" + b"".join(string(key.encode()) + value for key, value in items.items()) + b"u."


def python_batch(labels, pixels, fortran=False):
    data = (pixels.T if fortran else pixels).tobytes()
    return mapping(batch_label=string(b"training batch"), labels=listed([integer(label) for label in labels]),
                   data=array(*pixels.shape, data, fortran=fortran), filenames=listed([string(b"a.png")]))


def python_meta(names=NAMES):
    return mapping(num_cases_per_batch=integer(10_000), label_names=listed([string(name) for name in names]))


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
def test_reads_every_picture(official, version):
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
        with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 there; looked for data_batch_1\.bin and .*tar\.gz"):
            cifar10(folder)


@pytest.mark.parametrize("version, name", [(BINARY, "data_batch_3.bin"), (BINARY, "batches.meta.txt"),
                                           (PYTHON, "test_batch"), (PYTHON, "batches.meta")])
def test_missing_file(damaged, version, name):
    with pytest.raises(FileNotFoundError, match=f"lacks {name} there; unpack http"):
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
    (lambda: mapping(labels=listed([integer(0)] * 10_000), data=array(10_000, 3072, bytes(8), b"O8")), "uint8 array b'data'"),
    (lambda: mapping(labels=listed([listed([])] * 10_000), data=array(10_000, 3072, PIXELS.tobytes())), "for record 0, got"),
    (lambda: mapping(labels=listed([integer(0)] * 10_000)), "uint8 array b'data'"),
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


@pytest.mark.parametrize("name, attack", [
    ("os.system", b"cos\nsystem\n" + string(b"touch ran") + b"\x85R."),
    ("builtins.eval", b"cbuiltins\neval\n" + string(CODE) + b"\x85R."),
    ("builtins.eval", b"\x8c\x08builtins\x8c\x04eval\x93" + string(CODE) + b"\x85R."),
    ("builtins.eval", b"(" + string(CODE) + b"ibuiltins\neval\n."),
    ("numpy.core.multiarray.fromfile", b"cnumpy.core.multiarray\nfromfile\n" + string(b"ran") + b"\x85R."),
    ("numpy.load", b"cnumpy\nload\n" + string(b"ran") + b"\x85R."),
    ("numpy.ndarray.tofile", b"cnumpy\nndarray.tofile\n."),
    ("numpy.core.multiarray._reconstruct.__globals__", b"\x80\x04cnumpy.core.multiarray\n_reconstruct.__globals__\n."),
])
@pytest.mark.parametrize("file", ["data_batch_1", "batches.meta"])
def test_no_pickled_code_runs(damaged, monkeypatch, file, name, attack):
    folder = damaged(PYTHON, file, b"\x80\x02" + attack)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"{file}: byte [0-9]+: .*refused to load {name}"):
        cifar10(folder)
    assert not (folder / "ran").exists()


@given(st.data())
def test_damage_is_a_value_error(tmp_path_factory, data):
    """Whatever bytes change, a reading ends in names or in a ValueError that names the file."""
    content = bytearray(python_meta())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "batches.meta"
    path.write_bytes(content[:data.draw(st.integers(0, len(content)))])
    try:
        assert all(isinstance(name, str) for name in _python_classes(path))
    except ValueError as error:
        assert str(error).startswith(str(path))
