"""The built-in data set: ten kinds of figures, drawn, not downloaded."""
import contextlib
import hashlib
import math
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw

from nbcnn import user_cache
from nbcnn.datasets.dataset import Dataset
from nbcnn.kernels.arguments import SEEDS, integer

TRAIN, TEST, SIZE = 10_000, 2_000, 32
ENDING = ".npz"
KEEP = 4        # files of 37 MB: those used last stay
FINE = 4        # figures are drawn 4 times larger and then averaged, for smooth edges


def shapes(seed=0):
    """Draw the ten figures with random place, size, angle, stretch, colours, shading and noise.

    Parameters
    ----------
    seed : int, at least 0
        The same seed gives the same images.

    Returns
    -------
    train, test : Dataset
        10,000 and 2,000 RGB images of 32x32 pixels, equally many of each class.

    Notes
    -----
    A figure differs from its background by 64 levels or more in every channel, and may be darker or lighter, so colour says nothing
    about the class. Drawing takes one or two seconds. The images of the last four seeds are kept in the user's cache folder, where
    a damaged or unwritable file does no harm. Another release of NumPy or Pillow may draw other images.
    """
    seed = integer(seed, "seed", 0, SEEDS)
    arrays = None
    with contextlib.suppress(OSError):
        arrays = read(_cache_path(seed))
        user_cache.used(_cache_path(seed))
    if arrays is None:
        arrays = [array for split, count in enumerate((TRAIN, TEST))
                  for array in draw(count, np.random.default_rng([seed, split]))]
        with contextlib.suppress(OSError):
            user_cache.write(_cache_path(seed), lambda file: np.savez(file, *arrays), KEEP)
    return tuple(Dataset(images, labels, list(FIGURES), "shapes") for images, labels in (arrays[:2], arrays[2:]))


def _arc(count, first=0.0, radius=1.0, dent=1.0, x=0.0):
    """`count` points around (x, 0), clockwise from the angle `first` in degrees; every second one has radius * dent."""
    angles = [math.radians(first + 360 * k / count) for k in range(count)]
    radii = [radius * (dent if k % 2 else 1) for k in range(count)]
    return [(x + r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


# Each figure is a list of polygons, about 1 in radius, y pointing down; the second one is cut out of the first.
FIGURES = {
    "arrow": [[(-1, -.28), (.1, -.28), (.1, -.8), (1, 0), (.1, .8), (.1, .28), (-1, .28)]],
    "bolt": [[(.25, -1), (-.6, .15), (-.08, .15), (-.3, 1), (.6, -.25), (.08, -.25)]],
    "circle": [_arc(40, radius=.85)],
    "cross": [[(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3),
               (-1, -.3), (-.3, -.3)]],
    "heart": [[(.95 * math.sin(t)**3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
               for t in (math.pi * k / 20 for k in range(40))]],
    "moon": [_arc(40), _arc(40, radius=.85, x=.5)],
    "ring": [_arc(40), _arc(40, radius=.55)],
    "square": [_arc(4, first=45, radius=1.1)],
    "star": [_arc(10, first=-90, radius=1.1, dent=.4)],
    "triangle": [_arc(3, first=-90, radius=1.1)],
}


def draw(count, rng):
    """Images uint8 (count, 3, 32, 32) and labels int64 (count,)."""
    labels = rng.permutation(np.arange(count) % len(FIGURES))
    masks = _masks(labels, rng)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    ramp = np.linspace(-1, 1, SIZE)
    for first in range(0, count, 500):      # part by part: floats take four times the memory
        part = slice(first, first + 500)
        mask = masks[part, None] / np.float32(255)
        per_channel = (len(mask), 3, 1, 1)
        ground = rng.integers(80, 176, per_channel)
        figure = np.clip(ground + rng.choice([-1, 1], per_channel) * rng.integers(64, 128, per_channel), 0, 255)
        across, down = rng.uniform(-30, 30, (2, *per_channel))
        noise = rng.standard_normal((len(mask), 3, SIZE, SIZE), np.float32)
        noise *= rng.uniform(5, 25, (len(mask), 1, 1, 1)).astype(np.float32)
        levels = noise + mask * (figure - ground).astype(np.float32)
        levels += ground + across * ramp + down * ramp[:, None]
        images[part] = np.clip(levels, 0, 255)
    return images, labels


def _masks(labels, rng):
    """The part of each pixel that the figure covers, from 0 to 255, uint8 (count, 32, 32)."""
    figures = list(FIGURES.values())
    count = len(labels)
    angles, radii = np.radians(rng.uniform(-20, 20, count)), rng.uniform(10, 14.5, count)
    stretches, mirrors = rng.uniform(.85, 1.18, count), rng.choice([-1, 1], count)
    centres = SIZE / 2 + rng.uniform(-1, 1, (2, count)) * (SIZE / 2 - radii)
    masks = np.empty((count, SIZE, SIZE), np.uint8)
    for k, (label, angle, radius, stretch, mirror, cx, cy) in enumerate(
            zip(labels, angles, radii, stretches, mirrors, *centres, strict=True)):
        cos, sin = FINE * math.cos(angle), FINE * math.sin(angle)
        rx, ry = radius * stretch * mirror, radius / stretch
        fine = Image.new("L", (SIZE * FINE, SIZE * FINE))
        draw = ImageDraw.Draw(fine)
        for polygon, fill in zip(figures[label], (255, 0), strict=False):
            draw.polygon([(round(FINE * cx + cos * rx * x - sin * ry * y), round(FINE * cy + sin * rx * x + cos * ry * y))
                          for x, y in polygon], fill=fill)
        masks[k] = fine.reduce(FINE)
    return masks


def _cache_path(seed):
    """Where the images of a seed are kept: the name contains all that decides what they look like."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return user_cache.folder() / f"shapes-{seed}-{code}-pillow-{PIL.__version__}-numpy-{np.__version__}{ENDING}"


def read(path):
    """The four arrays of a cache file, or None where it is missing, damaged or another file. The zip format has checksums."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in file.files]
    except Exception:       # a damaged file can raise anything, and drawing again helps
        return None
    expected = [((count, *rest), dtype) for count in (TRAIN, TEST)
                for rest, dtype in (((3, SIZE, SIZE), np.uint8), ((), np.int64))]
    return arrays if [(array.shape, array.dtype) for array in arrays] == expected else None
