"""Pictures of every kind as a network takes them, bad ones, and folders of them."""
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from nbcnn import datasets, pictures
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


@pytest.mark.parametrize("make, message", [
    (lambda: open("x", "w").close(), "x: not a picture that can be read: no format that Pillow knows"),
    (lambda: open("x", "w").write("hello"), "x: not a picture that can be read: no format that Pillow knows"),
    (lambda: bomb("x"), "x: not a picture that can be read: Image size .400000000 pixels. exceeds limit"),
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
            bad += str(error).startswith("cut: not a picture that can be read: ")
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
    *[(shape, error, r"shape: expected \(C, H, W\) of a picture with 1 or 3 channels, got")
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


def test_find_pictures(folder):
    for name in ("b/2.PNG", "b/10.jpg", "a.gif", "b/notes.txt", "b/.hidden.png", "c/d/e/x.webp", "c/Thumbs.db", "c/y.tif",
                 ".ipynb_checkpoints/z.png", "b/.cache/z.png", "film.mpg", "paper.eps", "paper.pdf"):
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
    (lambda folder: folder.mkdir(), ValueError, "pets: expected a folder for each class, with its pictures, got none"),
    (lambda folder: (folder / "cat").mkdir(parents=True), ValueError, "cat: expected pictures, got no file that Pillow knows"),
    (lambda folder: classes_of(folder, "cat", "dgo"), ValueError, "expected folders named after the classes cat, dog, got dgo"),
    (lambda folder: [classes_of(folder, "cat"), (folder / "cat" / "1.png").write_bytes(b"?")], ValueError, "1.png: not a picture"),
    (lambda folder: None, FileNotFoundError, "pets"), (lambda folder: folder.touch(), NotADirectoryError, "pets"),
])
def test_folders_that_are_no_data_set(folder, make, error, message):
    make(folder / "pets")
    with pytest.raises(error, match=message):
        datasets.folder("pets", classes=["cat", "dog"])


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
