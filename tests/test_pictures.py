"""Pictures of every kind as a network takes them, bad ones, and folders of them."""
import io
import math
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

import nbcnn
from nbcnn import datasets, pictures, train
from nbcnn.evaluate import __main__ as evaluate
from nbcnn.pictures import find_pictures, read_picture, read_pictures

COLOURS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(image, kind="PNG", **options):
    """What read_picture makes of an image in a file."""
    name = f"picture.{kind.lower()}"
    image.save(name, kind, **options)
    return read_picture(name, (3, 32, 32))


def plain(colour, size=(32, 32), mode="RGB"):
    return Image.new(mode, size, colour)


def near(picture, colour, by=0):
    return picture.shape == (3, 32, 32) and (np.abs(picture.astype(int) - np.reshape(colour, (3, 1, 1))) <= by).all()


# ---- what comes out ----

def test_a_picture_of_the_right_shape_keeps_its_bytes():
    image = Image.fromarray(COLOURS)
    for kind in ("PNG", "BMP", "TIFF"):
        got = stored(image, kind)
        assert got.dtype == np.uint8 and (got == COLOURS.transpose(2, 0, 1)).all()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    assert (read_picture(stream, (3, 32, 32)) == got).all()
    assert (read_picture("picture.png", (1, 32, 32))[0] == np.asarray(image.convert("L"))).all()
    stored(image, "JPEG")
    with Image.open("picture.jpeg") as again:
        assert (read_picture("picture.jpeg", (3, 32, 32)) == np.asarray(again).transpose(2, 0, 1)).all()


def test_grey_palette_and_other_colours():
    assert near(stored(plain(77, mode="L")), [77] * 3)
    assert near(stored(plain(1, mode="1")), [255] * 3)
    palette = plain(1, mode="P")
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert near(stored(palette), [10, 200, 30]) and near(stored(palette, "GIF"), [10, 200, 30])
    assert near(stored(plain((0, 255, 255, 0), mode="CMYK"), "TIFF"), [255, 0, 0])      # no cyan, all magenta and yellow: red


def test_transparency_is_laid_on_white():
    """Half of 100 and half of white is 177.5; whatever is hidden under nothing is white."""
    assert near(stored(plain((100, 0, 255, 0), mode="RGBA")), [255] * 3)
    assert near(stored(plain((100, 0, 255, 255), mode="RGBA")), [100, 0, 255])
    assert near(stored(plain((100, 100, 100, 128), mode="RGBA")), [177] * 3, 1)
    assert near(stored(plain((100, 128), mode="LA")), [177] * 3, 1)
    palette = plain(1, mode="P")
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert near(stored(palette, transparency=1), [255] * 3) and near(stored(palette, transparency=0), [10, 200, 30])
    assert near(stored(plain((9, 8, 7)), transparency=(9, 8, 7)), [255] * 3)


@pytest.mark.parametrize("value, dtype, expected", [
    (65535, np.uint16, 255), (32896, np.uint16, 128), (257, np.uint16, 1), (200, np.uint16, 1),     # 257 * 255 = 65535
    (255, np.int32, 1), (65535, np.int32, 255), (1_000_000, np.int32, 255), (-5000, np.int32, 0),
    (1.0, np.float32, 255), (0.5, np.float32, 128), (128.0, np.float32, 128), (np.nan, np.float32, 0),
])
def test_more_than_eight_bits_are_scaled(value, dtype, expected):
    kind = "PNG" if dtype == np.uint16 else "TIFF"
    assert near(stored(Image.fromarray(np.full((32, 32), value, dtype)), kind), [expected] * 3)


def test_floats_that_are_no_numbers_are_black():
    values = np.ones((32, 32), np.float32)
    values[3, 4] = np.nan
    got = stored(Image.fromarray(values), "TIFF")
    assert got[:, 3, 4].tolist() == [0] * 3 and got[:, 4, 3].tolist() == [255] * 3


def test_pictures_that_differ_in_size_and_proportions():
    """The middle of a wide and of a high picture, whose ends have another colour; a small one is enlarged."""
    wide = plain((255, 0, 0), (96, 32))
    wide.paste((0, 0, 255), (32, 0, 64, 32))
    assert near(stored(wide), [0, 0, 255])
    assert near(stored(wide.rotate(90, expand=True)), [0, 0, 255])
    large = stored(wide.resize((960, 320), Image.Resampling.NEAREST))
    assert (large[:, :, 1:-1] == np.reshape([0, 0, 255], (3, 1, 1))).all()      # the outermost columns mix both
    assert near(stored(plain((1, 2, 3), (1, 1))), [1, 2, 3])
    upright = Image.fromarray(COLOURS[:7, :5])
    upright.save("upright.png")
    assert (read_picture("upright.png", (3, 7, 5)) == COLOURS[:7, :5].transpose(2, 0, 1)).all()
    checks = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8))
    assert near(stored(checks), [127.5] * 3, 2)     # antialiased: a pixel is the mean of what it covers


def test_large_jpegs_are_decoded_at_a_fraction_and_stay_the_same(monkeypatch):
    image = Image.fromarray(COLOURS).resize((1600, 1600), Image.Resampling.BICUBIC)
    got = stored(image, "JPEG", quality=95)
    assert np.abs(got.astype(int) - stored(image)).mean() < 2
    sizes, load = [], JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: sizes.append(image.size) or load(image))
    read_picture("picture.jpeg", (3, 32, 32))
    assert sizes[0] == (200, 200)       # an eighth, the least that a decoder can do, and above 4 times 32


def test_jpegs_are_decoded_as_grey_where_that_is_all_that_is_wanted(monkeypatch):
    Image.fromarray(COLOURS).resize((200, 200)).save("picture.jpeg", quality=95)
    expected = read_picture("picture.jpeg", (3, 32, 32)).transpose(1, 2, 0)
    modes, load = [], JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: modes.append(image.mode) or load(image))
    got = read_picture("picture.jpeg", (1, 32, 32))[0]
    assert modes[0] == "L" and np.abs(got - np.asarray(Image.fromarray(expected).convert("L")).astype(int)).max() <= 2


def modes_of(image):
    """The image in every mode that is read, by name."""
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    grey = np.asarray(image.convert("L"))
    return {"RGB": image, "L": image.convert("L"), "1": image.convert("1"), "P": image.quantize(200), "RGBA": alpha,
            "LA": alpha.convert("LA"), "CMYK": image.convert("CMYK"), "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
            "I": Image.fromarray(grey.astype(np.int32) * 999), "F": Image.fromarray(grey.astype(np.float32))}


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(230, 310), (310, 230), (131, 1000)])
def test_large_pictures_are_made_small_before_they_are_converted(monkeypatch, mode, size):
    """Nearly the same: means of squares come before bicubic weights. How many rows a band has makes no difference."""
    image = modes_of(Image.fromarray(COLOURS[:5, :5]).resize(size, Image.Resampling.BICUBIC))[mode]
    image.save("picture.tif")
    whole, sizes, reduce = read_picture("picture.tif", (3, 12, 10)), [], Image.Image.reduce
    monkeypatch.setattr(pictures, "FULL", 1000)
    large = read_picture("picture.tif", (3, 12, 10))
    difference = np.abs(large - whole.astype(int))
    assert difference.mean() < 2 and difference.max() < 12
    monkeypatch.setattr(pictures, "BAND", 5000)
    monkeypatch.setattr(Image.Image, "reduce", lambda part, factor: sizes.append(math.prod(part.size)) or reduce(part, factor))
    assert (read_picture("picture.tif", (3, 12, 10)) == large).all() and max(sizes) <= 5000 and len(sizes) > 2


def test_a_large_picture_of_the_right_size_keeps_its_bytes(monkeypatch):
    monkeypatch.setattr(pictures, "FULL", 100)
    monkeypatch.setattr(pictures, "BAND", 70)
    assert (stored(Image.fromarray(COLOURS)) == COLOURS.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_pictures_are_turned_as_small_ones(monkeypatch, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS[:5, :5]).resize((310, 230), Image.Resampling.BICUBIC).save("picture.png", exif=exif)
    with Image.open("picture.png") as image:
        expected = np.asarray(ImageOps.fit(ImageOps.exif_transpose(image), (10, 12))).transpose(2, 0, 1)
    assert (read_picture("picture.png", (3, 12, 10)) == expected).all()
    monkeypatch.setattr(pictures, "FULL", 1000)
    assert np.abs(read_picture("picture.png", (3, 12, 10)) - expected.astype(int)).mean() < 2


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's account of memory")
def test_a_large_picture_takes_little_more_memory_than_its_pixels():
    """9 million of them, in a process of its own. As floats, or with its transparency laid on white, a whole one takes more."""
    for mode, options in (("RGBA", {}), ("I;16", {}), ("P", {"transparency": 0})):
        Image.new(mode, (3000, 3000)).save(f"{mode}.png", compress_level=1, **options)
    code = """
from nbcnn.pictures import Image, read_picture
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
Image.new("RGBA", (2100, 2100)).save("small.png")
for mode in ("small", "RGBA", "I;16", "P"):
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    read_picture(f"{mode}.png", (3, 8, 8))
    print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for grown, pixels in zip(done.stdout.split()[1:], (36, 18, 9), strict=True):
        assert float(grown) < pixels + 20


def test_turned_as_exif_says():
    exif, image = Image.Exif(), plain((255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 32, 16))        # the upper half is blue
    exif[0x0112] = 6        # turn by 90 degrees, clockwise: the upper half is the right one then
    got = stored(image, "JPEG", exif=exif, quality=95)
    assert got[2, :, 20:].min() > 200 and got[2, :, :12].max() < 60


def test_the_first_frame_of_an_animation():
    frames = [plain((255, 0, 0)), plain((0, 255, 0))]
    assert near(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]), [255, 0, 0])


# ---- what does not ----

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path, size=20_000):
    """A PNG of a few hundred bytes that says it has size*size pixels."""
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "DDS", "JPEG2000", "SGI"])
def test_formats_that_are_not_read_whatever_the_name_says(kind):
    plain((1, 2, 3)).save("x.png", kind)
    with pytest.raises(ValueError, match=r"x.png: not an image that can be read: none of JPEG, PNG, GIF, "):
        read_picture("x.png", (3, 32, 32))


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_formats_that_are_read_whatever_the_name_says(kind):
    plain((200, 100, 50)).save("x.txt", kind)
    assert near(read_picture("x.txt", (3, 32, 32)), [200, 100, 50], 3 if kind in ("JPEG", "WEBP", "AVIF") else 0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_may_have_so_many_pixels(monkeypatch):
    """It is known from the header; a larger number raises Pillow's own limit too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    plain((1, 2, 3), (20, 30)).save("x.png")
    with pytest.raises(ValueError, match=r"x.png: .* it has 20 x 30 pixels, more than 599; max_pixels .--max-pixels. allows more"):
        read_picture("x.png", (3, 32, 32), 599)
    assert near(read_picture("x.png", (3, 32, 32), 600), [1, 2, 3])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert isinstance(read_pictures(["x.png"], (3, 32, 32))[0], ValueError)
    assert near(read_pictures(["x.png"], (3, 32, 32), max_pixels=601)[0], [1, 2, 3]) and Image.MAX_IMAGE_PIXELS == 601
    (os.mkdir("pets"), os.mkdir("pets/cat"), os.rename("x.png", "pets/cat/x.png"))
    assert len(datasets.folder("pets", max_pixels=600)) == 1
    with pytest.raises(ValueError, match="more than 599"):
        datasets.choose("folder", "pets", ["test"], max_pixels=599)
    for limit in (0, 2.5, "many"):
        with pytest.raises((ValueError, TypeError), match="max_pixels: expected an int >= 1"):
            read_picture("x.png", (3, 32, 32), limit)


def test_train_and_evaluate_take_so_many_pixels(capsys):
    classes_of(Path("pets/train"), "cat", "dog")
    classes_of(Path("pets/test"), "cat", "dog")
    nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(192, 2)], input_shape=(3, 8, 8), classes=["cat", "dog"]).save("net.safetensors")
    where = ["--dataset", "folder", "--data-dir", "pets", "--max-pixels"]
    for main, more in ((train.main, ["--size", "8"]), (evaluate.main, ["--checkpoint", "net.safetensors"])):
        assert main([*where, "1999", *more]) == 2 and "40 x 50 pixels, more than 1,999; max_pixels" in capsys.readouterr().err
    assert evaluate.main([*where, "2200", *more]) == 0


def test_a_bmp_of_run_lengths_may_have_fewer_pixels():
    """A line that ends at once is filled by Python, byte by byte."""
    for width, height in ((2000, 2000), (70_000, 1000)):
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 2, 0)
        with open("x.bmp", "wb") as file:
            file.write(b"BM" + struct.pack("<IHHI", 0, 0, 0, 62) + header + bytes(4) + b"\xff\xff\xff\0" + b"\1\0\0\0" * height)
        if width == 2000:
            assert near(read_picture("x.bmp", (3, 32, 32)), [0] * 3)
    with pytest.raises(ValueError, match=r"x.bmp: .* 70,000 x 1,000 pixels, more than 5,000,000"):
        read_picture("x.bmp", (3, 32, 32))


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_many_scans(monkeypatch, progressive):
    """Each takes as long as the picture has pixels, and a hundred bytes of the file."""
    monkeypatch.setitem(pictures.FORMATS, "JPEG", 10_000)
    plain(7, (100, 100), "L").save("x.jpg", progressive=progressive)
    content = open("x.jpg", "rb").read()
    assert near(read_picture("x.jpg", (3, 32, 32)), [7] * 3, 1)
    at = content.rindex(pictures.SCAN)
    with open("x.jpg", "wb") as file:
        file.write(content[:at] + content[at:-2] * (pictures.SCANS + 1) + content[-2:])
    with pytest.raises(ValueError, match=r"x.jpg: not an image that can be read: more scans than a JPEG"):
        read_picture("x.jpg", (3, 32, 32))


def test_a_file_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 100)
    plain(7, (100, 100), "L").save("x.png")
    with pytest.raises(ValueError, match=r"x.png: not an image that can be read: it has more than 100 bytes"):
        read_picture("x.png", (3, 32, 32))


@pytest.mark.parametrize("make, message", [
    (lambda: open("x", "w").close(), "x: not an image that can be read: none of JPEG, PNG, GIF, BMP, PPM, TIFF, WEBP, AVIF$"),
    (lambda: open("x", "w").write("hello"), "x: not an image that can be read: none of JPEG"),
    (lambda: bomb("x"), "x: not an image that can be read: Image size .* exceeds limit .*; max_pixels .--max-pixels. allows more"),
])
def test_what_is_no_picture(make, message):
    make()
    with pytest.raises(ValueError, match=message):
        read_picture("x", (3, 32, 32))


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Truncated File:UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_at_any_length(kind):
    Image.fromarray(COLOURS).save("whole", kind)
    content, whole, bad = open("whole", "rb").read(), read_picture("whole", (3, 32, 32)), 0
    for length in range(0, len(content), 37):
        with open("cut", "wb") as file:
            file.write(content[:length])
        try:        # what is missing at the end may be a comment
            assert (read_picture("cut", (3, 32, 32)) == whole).all()
        except ValueError as error:
            bad += str(error).startswith("cut: not an image that can be read: ")
    assert bad >= 5


def test_a_damaged_picture_is_an_error_or_a_picture():
    Image.fromarray(COLOURS).save("whole.png")
    content, rng = bytearray(open("whole.png", "rb").read()), np.random.default_rng(0)
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        result, = read_pictures([io.BytesIO(bytes(damaged))], (3, 32, 32))
        assert isinstance(result, ValueError) or result.shape == (3, 32, 32)


def test_an_error_of_the_system_names_the_file():
    class Broken(io.RawIOBase):
        name = "disk/a.png"

        def readable(self):
            return True

        def seekable(self):
            return True

        def read(self, size=-1):
            raise OSError(5, "Input/output error")
    with pytest.raises(OSError) as caught:
        read_picture(Broken(), (3, 32, 32))
    assert caught.value.filename == "disk/a.png"


def test_files_that_cannot_be_read():
    os.mkdir("folder.png")
    for name, error in (("nowhere.png", FileNotFoundError), ("folder.png", OSError)):
        with pytest.raises(error):
            read_picture(name, (3, 32, 32))


@pytest.mark.parametrize("shape, error, message", [
    *[(shape, error, r"shape: expected \(C, H, W\) of an image with 1 or 3 channels, got")
      for error, shapes in ((TypeError, (None, 32, "chw")), (ValueError, ((3, 32), (2, 32, 32), (4, 32, 32), (3072,))))
      for shape in shapes],
    (([], 32, 32), TypeError, r"shape: expected an int >= 1, got \[\]"),
    ((3, 0, 32), ValueError, "shape: expected an int >= 1, got 0"),
    ((3, 32.5, 32), TypeError, "shape: expected an int >= 1, got 32.5"),
])
def test_shapes_that_no_picture_has(shape, error, message):
    with pytest.raises(error, match=message):
        read_picture("picture.png", shape)


# ---- many ----

@pytest.mark.parametrize("large", [0, 1 << 40])
def test_many_pictures_come_in_order_with_their_errors(monkeypatch, large):
    """By one thread and by several."""
    monkeypatch.setattr(pictures, "LARGE", large)
    files = []
    for k in range(40):
        plain((k, 0, 255 - k)).save(f"{k}.png")
        files.append(f"{k}.png")
    files[7] = "nowhere.png"
    bomb("bomb.png")
    files[20] = "bomb.png"
    for k, result in enumerate(read_pictures(files, (3, 32, 32))):
        if k in (7, 20):
            assert isinstance(result, (ValueError, OSError)[k == 7])
        else:
            assert near(result, [k, 0, 255 - k])
    assert read_pictures([], (3, 32, 32)) == []


@pytest.mark.parametrize("size, together", [((30, 20), 1), ((20, 20), 2)])
def test_threads_decode_no_more_at_once_than_the_largest_picture_has_pixels(monkeypatch, size, together):
    monkeypatch.setattr(pictures, "LARGE", 0)
    monkeypatch.setitem(pictures.FORMATS, "PNG", 1000)
    counts, now, load = [], [], PngImageFile.load

    def counting(image):
        now.append(1)
        counts.append(len(now))
        time.sleep(0.02)
        now.pop()
        return load(image)
    monkeypatch.setattr(PngImageFile, "load", counting)
    plain((1, 2, 3), size).save("x.png")
    assert all(near(picture, [1, 2, 3]) for picture in read_pictures(["x.png"] * 12, (3, 32, 32), threads=6))
    assert max(counts) == together
    read_pictures([bomb("bomb.png", 31)] * 3, (3, 32, 32), threads=3)       # what fails leaves as well
    assert pictures._room.taken == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_finds_room():
    with pictures._room.share(1000):
        child = os.fork()
        if not child:
            os._exit(pictures._room.taken)
        assert os.waitpid(child, 0)[1] == 0


def test_find_pictures(folder):
    for name in ("b/2.PNG", "b/10.jpg", "a.gif", "b/notes.txt", "b/.hidden.png", "c/d/e/x.webp", "c/Thumbs.db", "c/y.tif",
                 ".ipynb_checkpoints/z.png", "b/.cache/z.png", "film.mpg", "paper.eps", "paper.pdf", "icon.ico", "x.psd"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert find_pictures(".") == [os.path.join(".", *name.split("/")) for name in
                                  ("a.gif", "b/10.jpg", "b/2.PNG", "c/d/e/x.webp", "c/y.tif")]
    with pytest.raises(FileNotFoundError):
        find_pictures("nowhere")
    with pytest.raises(NotADirectoryError):
        find_pictures("a.gif")


# ---- a data set of one's own ----

def classes_of(folder, *names):
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(3 + k):
            plain((50 * k, 10 * j, 0), (40 + j, 50)).save(folder / name / f"{j}.png")


def test_a_folder_of_folders(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["nbcnn.datasets.folder"], "AT_ONCE", 5)     # as nbcnn.datasets.folder is the function
    classes_of(folder / "pets", "dog", "cat/young", "bird")
    (folder / "pets" / ".git").mkdir()
    dataset = datasets.folder("pets")
    assert dataset.classes == ["bird", "cat", "dog"] and dataset.name == "folder"
    assert dataset.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3 and dataset.images.shape == (12, 3, 32, 32)
    assert dataset.images[:, :2, 9, 9].tolist() == [[100, 10 * j] for j in range(5)] + [[50, 10 * j] for j in range(4)] + [
        [0, 10 * j] for j in range(3)]
    other = datasets.folder("pets", (3, 8, 6), ["dog", "fish", "cat", "bird"])
    assert other.images.shape == (12, 3, 8, 6) and other.labels.tolist() == [3] * 5 + [2] * 4 + [0] * 3


@pytest.mark.parametrize("make, error, message", [
    (lambda folder: folder.mkdir(), ValueError, "pets: expected a folder for each class, with its images, got none"),
    (lambda folder: (folder / "cat").mkdir(parents=True), ValueError, "cat: expected images, got no file whose name ends"),
    (lambda folder: classes_of(folder, "cat", "dgo"), ValueError, "expected folders named after the classes cat, dog, got dgo"),
    (lambda folder: [classes_of(folder, "cat"), (folder / "cat" / "1.png").write_bytes(b"?")], ValueError,
     r"^pets: 1 of 3 images cannot be read: pets.cat.1.png: not an image.*\. --skip-broken \(skip_broken=True\) leaves them out$"),
    (lambda folder: None, FileNotFoundError, "pets"), (lambda folder: folder.touch(), NotADirectoryError, "pets"),
])
def test_folders_that_are_no_data_set(folder, make, error, message):
    make(folder / "pets")
    with pytest.raises(error, match=message):
        datasets.folder("pets", classes=["cat", "dog"])


def test_broken_files_are_listed_and_left_out(folder):
    classes_of(folder / "pets", "dog", "cat")
    for name in ("cat/0", "cat/2", "cat/3", "dog/0", "dog/2"):
        (folder / "pets" / f"{name}.png").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"^pets: 5 of 7 images cannot be read: (pets.cat.[023].png: not [^;]*; ){3}and 2 more\. "):
        datasets.folder("pets")
    with pytest.warns(UserWarning, match="^left out: pets.(cat|dog).[023].png: not an image that can be read: none of") as warned:
        dataset = datasets.folder("pets", skip_broken=True)
    assert len(warned) == 5 and dataset.labels.tolist() == [0, 1] and dataset.images[:, 0, 9, 9].tolist() == [50, 0]
    (folder / "pets" / "dog" / "1.png").write_bytes(b"?")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"^pets.dog: expected images, got none that can be read$"):
        datasets.folder("pets", skip_broken=True)


def test_the_commands_leave_out_broken_files(folder, capsys):
    for split in ("train", "test"):
        classes_of(folder / "pets" / split, "cat", "dog")
        (folder / "pets" / split / "cat" / "bad.png").write_bytes(b"?")
    where, last = ["--dataset", "folder", "--data-dir", "pets"], "run/last.safetensors"
    assert train.main([*where, "--out", "run"]) == 2
    assert "pets/train: 1 of 8 images cannot be read: pets/train/cat/bad.png" in capsys.readouterr().err.replace(os.sep, "/")
    assert train.main([*where, "--out", "run", "--size", "8", "--epochs", "1", "--quiet", "--skip-broken"]) == 0
    assert capsys.readouterr().err.replace(os.sep, "/").count("nbcnn train: left out: pets/t") == 2
    assert train.main(["--resume", last, "--quiet"]) == 0 and capsys.readouterr().err.count("left out") == 2
    assert evaluate.main(["--checkpoint", last]) == 2 and "--skip-broken" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", last, "--skip-broken"]) == 0 and capsys.readouterr().err.count("left out") == 1


def test_images_that_memory_cannot_hold(folder, monkeypatch):
    """Not even the system's overcommitted one: it would end the process while they are written."""
    monkeypatch.setattr(pictures, "machine_memory", lambda: 10**6)
    classes_of(folder / "pets", "cat", "dog")
    for name, count in (("shapes", "2,000"), ("folder", 7)):
        with pytest.raises(MemoryError, match=rf"^shape: expected one whose {count} images .* of 1,000,000 bytes, got \(3, 400"):
            datasets.choose(name, "pets", ["test"], shape=(3, 400, 400))
    assert len(datasets.folder("pets", (1, 9, 9))) == 7


def test_choose(folder):
    classes_of(folder / "pets" / "train", "cat", "dog")
    classes_of(folder / "pets" / "test", "dog")
    (train, test), why = datasets.choose("folder", "pets", shape=(3, 8, 8))
    assert why == "from pets" and (train.classes, test.classes) == (["cat", "dog"],) * 2
    assert train.labels.tolist() == [0] * 3 + [1] * 4 and test.labels.tolist() == [1] * 3 and test.images.shape == (3, 3, 8, 8)
    (only,), why = datasets.choose("folder", "pets", ["test"], classes=["cat", "dog"])
    assert only.labels.tolist() == [1] * 3 and why == f"from {os.path.join('pets', 'test')}"
    (only,), why = datasets.choose("folder", "pets/train", ["test"])      # holds the classes itself
    assert only.labels.tolist() == [0] * 3 + [1] * 4 and why == f"from {os.path.join('pets', 'train')}"
    with pytest.raises(FileNotFoundError, match=r"no such folder; expected .* to hold train and test, and these a folder for each"):
        datasets.choose("folder", "pets/train")
    (folder / "pets" / "test").rename(folder / "other")
    with pytest.raises(FileNotFoundError, match="expected pets to hold train and test"):        # not the classes "train"
        datasets.choose("folder", "pets", ["test"])
    for name, splits, message in (("cifar-10", ["test"], "name: expected one of 'auto', 'cifar10', .* got 'cifar-10'"),
                                  ("shapes", ["valid"], "splits: expected one of 'train', 'test', got 'valid'")):
        with pytest.raises(ValueError, match=message):
            datasets.choose(name, ".", splits)
