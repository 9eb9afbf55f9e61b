"""Images from files, as a network takes them.

A file may come from anybody. So only formats are opened whose decoders run in this process and are in wide use; the header says how
much memory an image needs, before anything is decoded; and large images are made small before they are converted.
"""
import importlib
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nbcnn.files import require_file
from nbcnn.kernels.arguments import integer, ints
from nbcnn.kernels.shown import shown
from nbcnn.memory import machine_memory

# The formats, and how many pixels an image may have: those of a camera with 108 megapixels. Fewer where Pillow needs more than the
# usual 4 bytes a pixel (16 for WEBP, 12 for AVIF and for a TIFF in one strip), so that no image takes a gigabyte.
FORMATS = {"JPEG": 110_000_000, "PNG": 110_000_000, "GIF": 110_000_000, "BMP": 110_000_000, "PPM": 110_000_000,
           "TIFF": 80_000_000, "WEBP": 50_000_000, "AVIF": 50_000_000}
for _plugin in ("Jpeg", "Png", "Gif", "Bmp", "Ppm", "Tiff", "WebP", "Avif"):      # otherwise Pillow imports all of its plugins
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
ENDINGS = {end for end, kind in Image.EXTENSION.items() if kind in FORMATS}
RUNS = 5_000_000        # pixels of a BMP with run lengths: Pillow decodes it in Python, 10 million pixels a second
LARGEST = 500_000_000   # bytes of a file: it may be in memory together with the decoded image
LARGE = 1 << 12         # bytes of a file that is worth a thread of its own
FULL = 1 << 22          # pixels: a larger image is converted one band after the other
BAND = 1 << 20          # pixels of a band
SCAN = b"\xff\xda"      # begins a scan of a JPEG. A progressive one has about ten, and even a short scan takes time
SCANS = 30              # that the largest image may have; a smaller one may have more
ORIENTATION = 0x0112    # an entry of EXIF; 1 means upright
UPRIGHT = dict(zip(range(2, 9), (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
                               Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
                               Image.Transpose.ROTATE_90), strict=True))
SIDEWAYS = range(5, 9)  # the orientations that exchange width and height
MODES = {1: "L", 3: "RGB"}      # by the number of channels


class _Room:
    """Room for the images that threads decode at once: as much as the largest image takes."""
    SIZE = 1000

    def __init__(self):
        self.taken, self.changed = 0, threading.Condition()

    @contextmanager
    def share(self, part):
        """Wait until `part` of SIZE is free, or all of it where that is more."""
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or self.taken + part <= self.SIZE)
            self.taken += part
        try:
            yield
        finally:
            with self.changed:
                self.taken -= part
                self.changed.notify_all()


_room = _Room()
if hasattr(os, "register_at_fork"):     # a child has none of the threads that would give their share back
    os.register_at_fork(after_in_child=_room.__init__)


def read_picture(file, shape, max_pixels=None):
    """Read an image and bring it to a network's shape.

    Turned as its EXIF entry says; transparency laid on white; 16 bits and floats scaled to 8 bits; of an image with other
    proportions the largest centred part; scaled with antialiasing. An image that has the shape already keeps its bytes.

    Parameters
    ----------
    file : path or binary stream
        Of one of the FORMATS, whatever its name ends in; of an animation the first frame.
    shape : tuple (C, H, W)
        C is 1, grey, or 3, red, green and blue.
    max_pixels : int, optional
        How many pixels the file may have; by default as FORMATS says. A number above Pillow's own limit raises that limit, too,
        for the whole process.

    Returns
    -------
    image : uint8 array (C, H, W)

    Raises
    ------
    OSError
        When the file cannot be read, or is no regular file.
    ValueError
        When the file is no image, is damaged, or has too many pixels: the message names it. Also when `shape` is no shape of an
        image.

    Examples
    --------
    >>> import io
    >>> stream = io.BytesIO()
    >>> Image.new("RGB", (640, 480), (255, 128, 0)).save(stream, "PNG")
    >>> read_picture(stream, (3, 32, 32))[:, 16, 16].tolist()
    [255, 128, 0]
    """
    channels, height, width = picture_shape(shape)
    if max_pixels is not None:
        integer(max_pixels, "max_pixels", 1)
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    is_path = isinstance(file, str | os.PathLike)
    try:
        if is_path:
            require_file(file)
            if os.stat(file).st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST:,} bytes")
        with Image.open(file, formats=tuple(FORMATS)) as image:
            runs = any(tile[0] == "bmp_rle" for tile in image.tile)
            limit = max_pixels or (RUNS if runs else FORMATS.get(image.format, FORMATS["JPEG"]))    # Pillow may call a JPEG MPO
            pixels = math.prod(image.size)
            if pixels > limit:
                raise Image.DecompressionBombError(f"it has {image.width:,} x {image.height:,} pixels, more than {limit:,}")
            mode = MODES[channels]
            image.draft(mode, (4 * max(height, width),) * 2)        # a large JPEG is decoded at a fraction of its size
            if image.format in ("JPEG", "MPO"):
                if (1 + image.fp.read().count(SCAN)) * pixels > SCANS * limit:      # each scan goes through all coefficients
                    raise ValueError("more scans than a JPEG of its size has")
                if "progressive" not in image.info:
                    pixels = math.prod(image.size)
            part = _Room.SIZE * pixels // limit
            with _room.share(part) if part else nullcontext():      # small images need not wait
                array = _fitted(image, mode, (width, height))
    except Exception as error:      # a damaged file can make Pillow raise anything
        name = file if is_path else getattr(file, "name", "the stream")
        if isinstance(error, OSError) and error.errno:
            error.filename = os.fspath(name)
            raise
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"none of {', '.join(FORMATS)}"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"{reason.rstrip('.')}; max_pixels (--max-pixels) allows more"
        raise ValueError(f"{name}: not an image that can be read: {reason}") from None
    return array.reshape(height, width, channels).transpose(2, 0, 1)


def fit_pictures(images, shape):
    """Images of a data set, brought to another shape as `read_picture` does.

    Parameters
    ----------
    images : uint8 array (M, C, H, W)
    shape : tuple (C, H, W)

    Returns
    -------
    images : uint8 array (M, C, H, W)
        The same array where the shape is the same.
    """
    if images.shape[1:] == tuple(shape):
        return images
    channels, height, width = shape = picture_shape(shape)
    fitted = empty_images(len(images), shape)
    for k, image in enumerate(images):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        fitted[k] = _sized(_in_mode(picture, MODES[channels]), (width, height)).reshape(height, width, channels).transpose(2, 0, 1)
    return fitted


def empty_images(count, shape):
    """Memory for `count` images of a shape; MemoryError, before the machine is out of it, where there is not so much."""
    size = count * math.prod(shape)
    if size > machine_memory():
        raise MemoryError(f"shape: expected one whose {count:,} images take at most the memory of {machine_memory():,} bytes, got "
                          f"{shown(shape)}, with {size:,}; a smaller size (--size) takes less")
    return np.empty((count, *shape), np.uint8)


def picture_shape(shape):
    """`shape`, which must be that of an image: (C, H, W) with C 1 or 3."""
    expected = "(C, H, W) of an image with 1 or 3 channels"
    sizes = ints(shape, "shape", expected, 1, 3)
    if sizes[0] not in MODES:
        raise ValueError(f"shape: expected {expected}, got {shown(sizes)}")
    return sizes


def read_pictures(files, shape, threads=None, max_pixels=None):
    """Read images as `read_picture` does; large files in several threads.

    Parameters
    ----------
    files : sequence of paths or binary streams
    shape, max_pixels
        As of `read_picture`.
    threads : int, optional
        By default as many as there are cores.

    Returns
    -------
    results : list
        For each file the image, or the OSError or ValueError that reading it raised.
    """
    def attempt(file):
        try:
            return read_picture(file, shape, max_pixels)
        except (OSError, ValueError) as error:
            return error
    some = files[::len(files) // 32 + 1]        # a sample says enough about the sizes
    if sum(map(_size, some)) < LARGE * len(some):
        return [attempt(file) for file in files]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(attempt, files))


def _size(file):
    """How many bytes a file has; 0 where that is not known."""
    try:
        return os.stat(file).st_size
    except (OSError, TypeError, ValueError):
        return 0


def find_pictures(path):
    """The images in a folder and in the folders in it, by the ends of their names, without hidden ones and links to folders.

    Parameters
    ----------
    path : path

    Returns
    -------
    files : list of str
        Sorted.

    Raises
    ------
    OSError
        When a folder cannot be read.
    """
    found = []

    def fail(error):
        raise error
    for folder, folders, names in os.walk(path, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [os.path.join(folder, name) for name in names
                  if os.path.splitext(name)[1].lower() in ENDINGS and name[0] != "."]
    return sorted(file for file in found if os.path.isfile(file) or os.path.islink(file))       # no pipes, which may never end


def _fitted(image, mode, size):
    """The image as an array: decoded, upright, in the mode and size asked for."""
    image.load()
    orientation = image.getexif().get(ORIENTATION)
    full = _full_scale(image)
    if math.prod(image.size) > FULL:
        image = _reduced(image, mode, full, size[::-1] if orientation in SIDEWAYS else size)
    else:
        image = _plain(image, mode, full)
    # An image that is upright and has the size already is not copied again.
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return _sized(image, size)


def _sized(image, size):
    """The image as an array, its largest centred part with the proportions of `size` scaled to that."""
    return np.asarray(image if image.size == size else ImageOps.fit(image, size))


def _in_mode(image, mode):
    return image if image.mode == mode else image.convert(mode)


def _reduced(image, mode, full, size):
    """The centre of a large image, in the proportions of `size`, reduced by a whole factor to at least 4 times `size`."""
    scale = min(image.width / size[0], image.height / size[1])
    factor = max(1, int(scale / 4))
    width, height = (min(side, math.ceil(scale * part)) // factor * factor for side, part in zip(image.size, size, strict=True))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    small = Image.new(mode, (width // factor, height // factor))
    for y, band in _bands(image, (left, top, left + width, top + height), factor):
        small.paste(_plain(band, mode, full).reduce(factor), (0, y // factor))
    return small


def _bands(image, box, factor=1):
    """(distance from the top of the box, part of the image) for parts of BAND pixels, and at least `factor` rows."""
    left, top, right, bottom = box
    rows = max(1, BAND // (right - left) // factor) * factor
    for y in range(top, bottom, rows):
        yield y - top, image.crop((left, y, right, min(y + rows, bottom)))


def _values(image):
    """The values of an image of more than 8 bits, with 0 for NaN."""
    return np.nan_to_num(np.array(image, np.float32), copy=False)


def _full_scale(image):
    """The value that is white in an image of more than 8 bits; None for other images."""
    if image.mode[0] not in "IF":
        return None
    peak = max(_values(band).max() for _, band in _bands(image, (0, 0, *image.size)))
    # Integers have 16 bits, whatever mode Pillow chose. Floats have no fixed scale: take the smallest usual one that is enough.
    return next((scale for scale in ((1, 255, 65535) if image.mode == "F" else (65535,)) if peak <= scale), peak)


def _plain(image, mode, full):
    """The image in the mode "RGB" or "L", laid on white where it is transparent, with 8 bits a channel."""
    if full is not None:
        values = _values(image)
        values *= np.float32(255 / full)
        image = Image.fromarray(np.rint(values, out=values).clip(0).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _in_mode(image, mode)
