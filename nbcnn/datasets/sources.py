"""Where the data sets with files are from, and where they are looked for."""
import os
from pathlib import Path
from typing import NamedTuple

from nbcnn.files import make_folder, require_file
from nbcnn.kernels.arguments import flag, instance, one_of
from nbcnn.kernels.shown import shown


class File(NamedTuple):
    """A file to download, with what those who publish it say of it."""
    name: str
    size: int
    md5: str


class Source(NamedTuple):
    """A set."""
    title: str
    what: str
    home: str               # the folder of its files
    places: tuple           # addresses: its authors', or of those who serve it for them, and another one
    wanted: tuple           # the Files to download
    members: dict | None = None     # where that is an archive: the files in it, and how many bytes each may have


CIFAR = ("https://www.cs.toronto.edu/~kriz/", "https://dataset.bj.bcebos.com/cifar/")       # the second is PaddlePaddle's
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ENDS = ("", ".gz")


def _gzipped(*numbers):
    return tuple(File(f"{name}.gz", *pair) for name, pair in zip(IDX, numbers, strict=True))


# The checksums are those of the authors' pages, and for MNIST, whose page is gone, torchvision's.
SOURCES = {
    "cifar10": Source(
        "CIFAR-10", "ten classes, 50,000 + 10,000 colour images of 32x32", "cifar-10-batches-py", CIFAR,
        (File("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),),
        {**{f"data_batch_{k}": 32_000_000 for k in range(1, 6)}, "test_batch": 32_000_000, "batches.meta": 10_000}),
    "cifar100": Source(
        "CIFAR-100", "100 classes, 50,000 + 10,000 colour images of 32x32", "cifar-100-python", CIFAR,
        (File("cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),),
        {"train": 160_000_000, "test": 32_000_000, "meta": 10_000}),
    "mnist": Source(
        "MNIST", "digits, 60,000 + 10,000 grey images of 28x28", "MNIST/raw",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        _gzipped((9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"), (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
                 (1_648_877, "9fb629c4189551a2d022fa330f9573f3"), (4_542, "ec29112dd5afa0611ce80d1b7f02629c"))),
    "fashion-mnist": Source(
        "Fashion-MNIST", "clothes, 60,000 + 10,000 grey images of 28x28", "FashionMNIST/raw",
        ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
         "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        _gzipped((26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"), (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
                 (4_422_102, "bef4ecab320f06d8554ea6380940ec79"), (5_148, "bb300cfdad3c16e7a12a480ee83cd310"))),
}


def get(name, folder, url=None):
    """Download a set by name, unless it is there.

    Parameters
    ----------
    name : str
        One of SOURCES.
    folder : path
        Its files get a folder in this one.
    url : str, optional
        The address of a folder, or of the archive, to take them from instead of those in SOURCES. They must be the same files.

    Returns
    -------
    home : Path
        The folder of the files.

    Raises
    ------
    FileNotFoundError
        When the folder is there, but a file in it is missing.
    ConnectionError, ValueError, OSError
        As of `nbcnn.datasets.download.bring`.
    """
    source = SOURCES[one_of(name, "name", SOURCES)]
    if url is not None and not instance(url, "url", str).startswith(("http://", "https://")):
        raise ValueError(f"url: expected an address that begins with http:// or https://, got {shown(url)}")
    home = Path(folder) / source.home
    if home.exists():
        require(name, home, source.members or IDX, ENDS)
        return home
    from nbcnn.datasets import download  # urllib.request and tarfile take a while
    make_folder(home.parent)
    download.bring(source.wanted, home, source.members, [url] if url else source.places)
    return home


def locate(name, folder, find, looked_for, download=False):
    """What `find()` finds in a folder, after a download where that is nothing and `download` is True."""
    found = find()
    if found is None and flag(download, "download"):
        get(name, folder)
        found = find()
    if found is None:
        hint = f"nbcnn data get {name}, or download=True, brings it"
        if os.path.isdir(os.path.join(folder, "train")):
            hint = "images in train/CLASS/... and test/CLASS/... are read with --dataset folder, or nbcnn.datasets.folder"
        raise FileNotFoundError(f"{folder}: no {SOURCES[name].title} there; looked for {looked_for}; {hint}")
    return found


def require(name, folder, names, ends=("",)):
    """The paths of files in a folder, each with one of these ends; an OSError where one is missing or no regular file."""
    paths = [next((path for end in ends if (path := folder / (file + end)).exists()), None) for file in names]
    if missing := [file for file, path in zip(names, paths, strict=True) if path is None]:
        raise FileNotFoundError(f"{folder}: {SOURCES[name].title} lacks {', '.join(missing)} there; move the folder away, and "
                                f"nbcnn data get {name} brings it anew")
    for path in paths:
        require_file(path)
    return paths
