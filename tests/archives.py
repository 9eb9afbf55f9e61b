"""The files that data sets come in: archives, and the idx files of MNIST."""
import gzip
import io
import tarfile

import numpy as np

from nbcnn.datasets.sources import IDX

SHAPES = [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]     # of IDX


def tar(*members, compress=gzip.compress):
    """An archive: (name, bytes), or the name, bytes and what differs of a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, *changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in (changes[0] if changes else {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return compress(file.getvalue())


def idx(array):
    """An array of uint8 as an idx file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def zeros():
    """{name: content} of the four files of MNIST, all zeros and gzipped."""
    return {f"{name}.gz": gzip.compress(idx(np.zeros(shape, np.uint8)), 1) for name, shape in zip(IDX, SHAPES, strict=True)}
