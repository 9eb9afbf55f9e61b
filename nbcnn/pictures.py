"""Pictures from files of any kind, as a network takes them."""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nbcnn.kernels.arguments import ints
from nbcnn.kernels.shown import shown

LARGE = 1 << 12         # bytes of a file that takes longer to decode than to hand to another thread
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}    # formats that Pillow knows, but draws with help or not at all
ORIENTATION = 0x0112    # of EXIF; 1 is upright
MODES = {1: "L", 3: "RGB"}      # by the number of channels


def read_picture(file, shape):
    """Read a picture and bring it to a network's shape.

    Turned as its EXIF entry says; transparency laid on white; 16 bits and floats scaled to 8 bits; of a picture with other
    proportions the largest centred part; scaled with antialiasing. A picture that has the shape already keeps its bytes.

    Parameters
    ----------
    file : path or binary stream
        Anything that Pillow opens; of an animation the first frame.
    shape : tuple (C, H, W)
        C is 1, grey, or 3, red, green and blue.

    Returns
    -------
    picture : uint8 array (C, H, W)

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it is no picture, a damaged one, or one of more pixels than Pillow takes for an honest picture; it names the file.
        Also for a shape that is none.

    Examples
    --------
    >>> import io
    >>> stream = io.BytesIO()
    >>> Image.new("RGB", (640, 480), (255, 128, 0)).save(stream, "PNG")
    >>> read_picture(stream, (3, 32, 32))[:, 16, 16].tolist()
    [255, 128, 0]
    """
    channels, height, width = picture_shape(shape)
    try:
        with Image.open(file) as image:
            image.draft(None, (4 * max(height, width),) * 2)        # a large JPEG is decoded at a fraction of its size
            image.load()
            # A picture that is right as it is is not copied again and again.
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            image = _plain(image, MODES[channels])
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height))
            picture = np.asarray(image)
    except Exception as error:      # what a damaged file makes Pillow raise
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "the stream")
        if isinstance(error, OSError) and error.errno:
            error.filename = os.fspath(name)
            raise
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise ValueError(f"{name}: not a picture that can be read: {reason}") from None
    return picture.reshape(height, width, channels).transpose(2, 0, 1)


def picture_shape(shape):
    """`shape`, which must be that of a picture: (C, H, W) with C 1 or 3."""
    expected = "(C, H, W) of a picture with 1 or 3 channels"
    sizes = ints(shape, "shape", expected, 1, 3)
    if sizes[0] not in MODES:
        raise ValueError(f"shape: expected {expected}, got {shown(sizes)}")
    return sizes


def read_pictures(files, shape, threads=None):
    """Read pictures as `read_picture` does, large ones in several threads.

    Parameters
    ----------
    files : sequence of paths or binary streams
    shape : tuple (C, H, W)
    threads : int, optional
        As many as there are cores by default.

    Returns
    -------
    results : list
        For each file the picture, or the OSError or ValueError that reading it raised.
    """
    def attempt(file):
        try:
            return read_picture(file, shape)
        except (OSError, ValueError) as error:
            return error
    if sum(map(_size, files)) < LARGE * len(files):
        return [attempt(file) for file in files]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(attempt, files))


def _size(file):
    """How many bytes a file has, 0 where that is not known."""
    try:
        return os.stat(file).st_size
    except (OSError, TypeError, ValueError):
        return 0


def find_pictures(path):
    """The pictures in a folder, and in the folders in it, by the ends of their names; hidden ones and links to folders left out.

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
    Image.preinit()     # the common formats first: otherwise each file would be tried as rarer ones before
    kinds = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NO_PICTURES}
    found = []

    def fail(error):
        raise error
    for folder, folders, names in os.walk(path, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [os.path.join(folder, name) for name in names
                  if os.path.splitext(name)[1].lower() in kinds and name[0] != "."]
    return sorted(file for file in found if os.path.isfile(file) or os.path.islink(file))       # no pipes, which may wait forever


def _plain(image, mode):
    """The picture in the mode "RGB" or "L", without transparency and with 8 bits a channel."""
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.array(image, np.float32), copy=False)
        peak = values.max()
        # Integers have 16 bits, whatever mode Pillow chose. Floats have no scale: taken is the smallest usual one that holds them.
        full = next((scale for scale in ((1, 255, 65535) if image.mode == "F" else (65535,)) if peak <= scale), peak)
        values *= np.float32(255 / full)
        image = Image.fromarray(np.rint(values, out=values).clip(0).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
