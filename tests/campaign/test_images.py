"""Mutated images of every format that is read, and of some that are not: an image or one line, soon, in little memory, and
nothing is run. And the example files that once ran a program and took gigabytes."""
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nbcnn
from nbcnn import predict
from nbcnn.pictures import FORMATS, read_picture

from campaign.harness import GIB, outcomes, survey

EXAMPLES = Path(__file__).resolve().parent / "examples"
NUMBERS = [0xffffffff, 0x7fffffff, 0x80000000, 0xffff, 0x10000, 100_000, 13_000, 10_000, 1 << 20, 0]
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"}


def bases():
    """(format, bytes) of images of all kinds."""
    rng, found = np.random.default_rng(0), []

    def image(mode):
        if mode == "I;16":
            return Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16))
        if mode in ("F", "I"):
            return Image.fromarray((rng.standard_normal((30, 40)) * 1000).astype({"F": np.float32, "I": np.int32}[mode]))
        return Image.fromarray(rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)).convert(mode)

    def add(kind, modes, **options):
        for mode in modes.split():
            stream = io.BytesIO()
            image(mode).save(stream, kind, **options)
            found.append((kind, stream.getvalue()))
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, "x" * 50
    add("PNG", "RGB RGBA L LA P 1 I;16")
    add("PNG", "P", transparency=3)
    add("PNG", "RGB", exif=exif, transparency=(1, 2, 3))
    add("JPEG", "RGB L CMYK")
    add("JPEG", "RGB L CMYK", progressive=True, exif=exif)
    add("MPO", "RGB", save_all=True, append_images=[image("RGB")])
    add("GIF", "P")
    add("GIF", "P", save_all=True, append_images=[image("P"), image("P")], transparency=1, disposal=2)
    add("BMP", "RGB L P 1 RGBA")
    add("PPM", "RGB L 1 I;16 F")
    add("TIFF", "RGB L RGBA CMYK I;16 I F 1 P LAB")
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "zstd", "lzma"):
        add("TIFF", "RGB", compression=compression)
    add("TIFF", "1", compression="group4")
    add("WEBP", "RGB")
    add("WEBP", "RGBA", lossless=True, exif=exif)
    add("WEBP", "RGB", save_all=True, append_images=[image("RGB")])
    add("AVIF", "RGB RGBA", speed=10)
    found += [("PPM", b"P3 3 2 255\n" + b"1 2 3 " * 6), ("PPM", b"P5 4 4 77\n" + bytes(16)), ("BMP", bmp_of_runs())]
    # Not read: what they are taken for once some bytes are others.
    for kind in ("ICO", "TGA", "EPS", "JPEG2000", "PCX", "DDS"):
        add(kind, "RGB")
    return found


def bmp_of_runs():
    """A BMP with run lengths and a jump, which Pillow cannot write."""
    data = b"\x08\x01\x00\x00\x00\x02\x02\x01\x03\x02\x00\x04abcd\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(data), 0, 0, 14 + 40 + 1024) + header + bytes(range(256)) * 4 + data


def mutate(content, others, rng):
    """A changed copy: bytes, the end, a number in the header, an insertion, a gap, another file's rest; or two of these."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2])):
        how, at = rng.random(), rng.randrange(len(data))
        if how < 0.35:
            top = rng.choice([len(data), min(len(data), 128)])
            for _ in range(rng.choice([1, 1, 2, 4, 16])):
                data[rng.randrange(top)] = rng.choice([rng.randrange(256), 0, 255, 127, 128])
        elif how < 0.45:
            del data[max(at, 1):]
        elif how < 0.7:
            for _ in range(rng.choice([1, 2])):
                form, at = rng.choice(["<I", ">I", "<H", ">H"]), rng.randrange(min(len(data), 96))
                number = rng.choice(NUMBERS) & (0xffff if "H" in form else 0xffffffff)
                data[at:at + struct.calcsize(form)] = struct.pack(form, number)
        elif how < 0.8:
            data[at:at] = rng.randbytes(rng.randrange(1, 300))
        elif how < 0.9 and at:
            del data[at:at + rng.randrange(1, 200)]
        else:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other)):]
    if data[:4] == b"\x89PNG" and rng.random() < 0.6:
        mend_checksums(data)
    return bytes(data)


def mend_checksums(data):
    """Make a PNG's checksums right, so that what is in it is looked at."""
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at:at + 4], "big")
        if at + 12 + size > len(data):
            break
        data[at + 8 + size:at + 12 + size] = struct.pack(">I", zlib.crc32(data[at + 4:at + 8 + size]))
        at += 12 + size


def prepare():
    warnings.simplefilter("ignore")
    found, started, path = bases(), [], os.path.join(os.environ["TMPDIR"], "image.png")
    sys.addaudithook(lambda event, arguments: started.append(event) if event in RUNS else None)
    read_picture(io.BytesIO(found[0][1]), (3, 32, 32))        # what is imported late
    return found, [content for _, content in found], started, path


def case(shared, rng):
    found, contents, started, path = shared
    kind, content = rng.choice(found)
    data, shape = mutate(content, contents, rng), (rng.choice([1, 3]), 32, 32)

    def read():
        Path(path).write_bytes(data)
        started.clear()
        try:
            image = read_picture(path, shape)
            assert image.shape == shape and image.dtype == np.uint8
        finally:
            assert not started, started
    return kind, read


def test_a_mutated_image_is_a_image_or_one_line(full, seed):
    records = survey(__name__, 100_000 if full else 1500, seed)
    for record in records:
        if record["seconds"] >= 2:      # may be a busy machine's: once more by itself
            record["seconds"], = (again["seconds"] for again in survey(__name__, 1, seed, first=record["case"]))
    print(outcomes(records), max(record["seconds"] for record in records), max(record["bytes"] for record in records))
    for record in records:
        assert record["outcome"] in ("ok", "ValueError"), record
        assert record["seconds"] < 2 and record["bytes"] < GIB, record
        if record["outcome"] != "ok":
            assert "image.png: not an image that can be read: " in record["message"], record
    kinds = {record["what"] for record in records if record["outcome"] == "ok"}
    assert set(FORMATS) <= kinds       # mutations leave some whole


# ---- the examples ----

@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(192, 2)], input_shape=(3, 8, 8), classes=["a", "b"]).save("net.safetensors")
    return ["--checkpoint", "net.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a program without an ending")
def test_an_eps_that_is_called_a_png_runs_no_program(tmp_path, network):
    """Pillow goes by the content, and would have Ghostscript draw it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "cat.png").write_bytes((EXAMPLES / "cat.png").read_bytes())
    command = [sys.executable, "-m", "nbcnn.predict", EXAMPLES / "cat.png", "folder", "-", *network]
    done = subprocess.run(command, stdin=open(EXAMPLES / "cat.png"), capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert not (tmp_path / "called").exists()
    assert done.returncode == 2 and done.stdout == "" and [line.split(": ", 2)[2] for line in done.stderr.splitlines()] == [
        f"not an image that can be read: none of {', '.join(FORMATS)}"] * 3


def test_a_small_file_of_many_pixels_is_refused_by_its_header(network, capsys, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    assert predict.main([str(EXAMPLES / "bomb.png"), *network]) == 2
    assert capsys.readouterr().err == (f"nbcnn predict: {EXAMPLES / 'bomb.png'}: not an image that can be read: it has "
                                       "13,370 x 13,370 pixels, more than 110,000,000; max_pixels (--max-pixels) allows more\n")
