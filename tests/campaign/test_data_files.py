"""Files of CIFAR and MNIST with bytes changed, in all versions and every protocol: read, or refused in one line."""
import gzip
import pickle
import pickletools
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

from nbcnn.datasets.cifar import Binary, Python
from nbcnn.datasets.idx import read_idx

from archives import idx
from campaign.harness import GIB, outcomes, survey
from pickles import NAMES, python_batch, python_meta

RECORDS = 10        # in a batch here
READERS = {
    "python batch": lambda path: Python().read_batch(path, RECORDS, 10), "python names": lambda path: Python().read_names(path, 10),
    "binary batch": lambda path: Binary().read_batch(path, RECORDS, 10), "binary names": lambda path: Binary().read_names(path, 10),
    "idx": lambda path: read_idx(path, (RECORDS, 28, 28)), "gzipped idx": lambda path: read_idx(path, (RECORDS, 28, 28)),
}
OPERATIONS = [operation.code.encode("latin-1") for operation in pickletools.opcodes]
PIECES = [          # of pickles: what declares a length, asks for a name, fetches, calls, nests
    *(b"\x96" + struct.pack("<Q", size) for size in (2**20, 2**30, 2**33, 2**62)),
    b"X\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"r\xff\xff\xff\xff",
    b"cos\nsystem\n", b"cnumpy\nload\n", b"cnumpy\ndtype\n", b"\x8c\x02os\x8c\x06system\x93", b"c_codecs\nencode\n",
    b"h\x00", b"h\x01h\x02", b"q\x07h\x07\x86" * 40, b"2\x86" * 20, b"\x85" * 30, b")R", b"R", b"b", b"N", b"}", b"]", b"(", b"t",
    b"s", b"u", b"a", b"e", b"I99999\n", b"L1L\n", b"F1e999\n", b"I" + b"9" * 5000 + b"\n", b"\x88",
]
WATCHED = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class", "compile", "exec"}


def originals():
    """(one of READERS, content) of files as they are."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (RECORDS, 3072), dtype=np.uint8), list(range(RECORDS))
    again = [pickle.dumps({key("labels"): labels, key("data"): np.asarray(pixels, order=order)}, protocol)
             for protocol in range(6) for key in (str, str.encode) for order in ("C", "F")]
    return [*[("python batch", content) for content in (python_batch(labels, pixels), *again)],
            *[("python names", content) for content in (python_meta(), pickle.dumps({"label_names": NAMES}, 0),
                                                         pickle.dumps({b"label_names": NAMES}, 4))],
            *[("binary batch", np.hstack([np.array(labels, np.uint8)[:, None], pixels]).tobytes())] * 3,
            *[("binary names", b"\n".join(NAMES))] * 3,
            *[("idx", idx(pixels[:, :784].reshape(-1, 28, 28)))] * 3,
            *[("gzipped idx", gzip.compress(idx(pixels[:, :784].reshape(-1, 28, 28) // 64)))] * 5]


def mutated(content, rng):
    """The content with one to four changes, few of them in the pixels."""
    content = bytearray(content)

    def place():
        near = rng.choice([rng.randrange(600), -rng.randrange(1, 400), rng.randrange(1 << 30)])
        return near % (len(content) + 1)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, kind = place(), rng.randrange(7)
        if kind == 0:
            content[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            content[at:at + 1] = rng.choice(OPERATIONS)
        elif kind == 2:
            content[at:at] = rng.choice(OPERATIONS) + rng.randbytes(rng.choice([0, 1, 4, 8]))
        elif kind == 3:
            content[at:at] = rng.choice(PIECES)
        elif kind == 4:
            del content[at:at + rng.choice([1, 2, 8, 64])]
        elif kind == 5:
            del content[at:]
        else:
            start = place()
            content[at:at] = content[start:start + rng.randrange(1, 50)]
    return bytes(content)


def prepare():
    """The originals, and where to write; whatever Python does that no reading needs is from now on an error."""
    folder, files = Path(tempfile.mkdtemp()), originals()
    for name, content in files:
        READERS[name](written(folder, name, content))

    def watch(event, arguments):
        if event in WATCHED:
            raise PermissionError(f"{event}{arguments}")
    sys.addaudithook(watch)
    return folder, files


def written(folder, name, content):
    """The path of a file with this content."""
    path = folder / ("file.gz" if name == "gzipped idx" else "file")
    path.write_bytes(content)
    return path


def case(shared, rng):
    folder, files = shared
    name, content = rng.choice(files)
    path = written(folder, name, mutated(content, rng))

    def attempt():
        try:
            READERS[name](path)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 300, message
            raise
    return name, attempt


def test_a_changed_file_is_read_or_refused_in_one_line(full, seed):
    records = survey(__name__, 100_000 if full else 1000, seed)
    assert not [record for record in records if record["outcome"] not in ("ok", "ValueError")], outcomes(records)
    assert max(record["seconds"] for record in records) < 2
    assert max(record["bytes"] for record in records) < GIB
