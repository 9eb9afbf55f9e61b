"""Checkpoints: one safetensors file with all that is needed to go on with a training, or to use the model.

Tensors: the parameters with PyTorch's names and shapes, and `optimizer.momentum.<name>` for each that has momentum. The metadata
holds one entry, "nbcnn", in JSON: the structure of the model, what it knows of its images and classes, the optimizer's options, how
far the training is, and the options it was started with. Floats are written so that they read back with the same bits.
"""
import json
import os
import zlib
from dataclasses import asdict, dataclass

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from nbcnn.files import require_file, write_atomically
from nbcnn.kernels import turns
from nbcnn.kernels.shown import one_line
from nbcnn.layers import require_network
from nbcnn.memory import machine_memory
from nbcnn.model import MissingLayer, Sequential, classes_by_name
from nbcnn.optim import SGD
from nbcnn.progress import Progress

FORMAT = 1
PYTORCH = int.from_bytes(b"PK\3\4", "little")      # a zip file, which torch.save writes
MOST_HEADER = 10**7     # bytes of the description; as Python objects it takes many times that
MOMENTUM = "optimizer.momentum."      # no parameter has such a name: theirs have one dot
ABOUT_MODEL = ("input_shape", "mean", "std", "classes", "seed")


@dataclass
class Checkpoint:
    """What `load` gives.

    Attributes
    ----------
    model : Sequential
    optimizer : SGD or None
        With the momentum of the model's parameters.
    progress : Progress
    options : dict
    """
    model: Sequential
    optimizer: SGD | None
    progress: Progress
    options: dict


def save(path, model, *, optimizer=None, progress=None, options=None):
    """Write a checkpoint. An old file stays until the new one is complete.

    Parameters
    ----------
    path : path
    model : Sequential
    optimizer : SGD, optional
    progress : Progress, optional
    options : dict, optional
        Anything that JSON can hold.

    Raises
    ------
    OSError
        When the file cannot be written.
    TypeError
        When `model` is none, or JSON cannot hold the options.
    ValueError
        When the structure has no description, see `Sequential.structure`, or this is larger than `load` takes.
    """
    write_atomically(path, to_bytes(model, optimizer, progress, options))


def to_bytes(model, optimizer=None, progress=None, options=None):
    """The bytes that `save` writes. For what `load` gave they are the bytes that it read."""
    require_network(model)
    with turns.lock:        # another thread may train: all values are taken between the same two updates
        tensors, state = model.state_dict(), None if optimizer is None else optimizer.state_dict()
    about = {"format": FORMAT, "structure": model.structure(), **{name: getattr(model, name) for name in ABOUT_MODEL},
             "dtype": model.dtype.name, "optimizer": None, "progress": asdict(progress or Progress()), "options": options or {}}
    if optimizer is not None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        about["optimizer"] = {"params": [names[parameter] for parameter in optimizer.params], **state}
        for name, buffer in zip(about["optimizer"]["params"], about["optimizer"].pop("momentum_buffers"), strict=True):
            if buffer is not None:
                tensors[MOMENTUM + name] = buffer
    about["crc32"] = _checksum(about, tensors)
    content = safetensors_bytes(tensors, metadata={"nbcnn": json.dumps(about)})
    if _header_size(content) > MOST_HEADER:
        raise ValueError(f"options: expected a description of model and options of at most {MOST_HEADER} bytes, got "
                         f"{_header_size(content)}")
    return content


def load(path, layers=()):
    """Read a checkpoint and build what it describes. Nothing in the file is run, and nothing is imported.

    Parameters
    ----------
    path : path
    layers : sequence of classes
        Those of the model's layers that are none of nbcnn's. They are made with the arguments that the file has.

    Returns
    -------
    Checkpoint

    Raises
    ------
    OSError
        When the file cannot be read, or is no regular file.
    MissingLayer
        A ValueError: when the model has a layer whose class is neither nbcnn's nor in `layers`.
    ValueError
        When it is no checkpoint, or a damaged one. The message begins with the file's name.
    """
    path, layers = os.fspath(path), list(classes_by_name(layers).values())
    require_file(path)
    with open(path, "rb") as file:
        header_size, size = _header_size(file.read(8)), os.fstat(file.fileno()).st_size
    if 4 * size > machine_memory():      # loading needs the file, parameters, gradients and a copy
        raise ValueError(f"{path}: expected a file that memory of {machine_memory():,} bytes can hold, got one of {size:,} bytes")
    try:
        if header_size & 0xffffffff == PYTORCH:
            raise ValueError("it begins as PyTorch's do: write net.state_dict() with safetensors there, and hand what it holds to "
                             "model.load_state_dict here")
        if header_size > MOST_HEADER:
            raise ValueError(f"its header has {header_size} bytes, more than {MOST_HEADER}")
        with safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get("nbcnn")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:
        raise ValueError(f"{path}: not a safetensors file, or a damaged one ({one_line(str(error), 300)})") from None
    if entry is None:
        raise ValueError(f"{path}: a safetensors file, but not a checkpoint of nbcnn")
    try:
        about = json.loads(entry)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version of nbcnn reads {FORMAT}")
        if about.pop("crc32") != _checksum(about, tensors):
            raise ValueError("its contents do not match their checksum")
        return _build(about, tensors, layers)
    except MissingLayer as error:
        raise MissingLayer(f"{path}: {error}") from None
    except Exception as error:      # a damaged or hostile file may raise anything
        reason = f"it has no entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not a readable checkpoint: {one_line(str(reason), 300)}") from None


def save_model(model, path):
    """Write a model (a Sequential), with all that `nbcnn.load` needs, to a file: `nbcnn.save`. Raises as `save`."""
    save(path, model)


def load_model(path, layers=()):
    """Read the model of a checkpoint, ready to predict: `nbcnn.load`. Raises as `load`.

    Parameters
    ----------
    path : path
    layers : sequence of classes
        Those of the model's layers that are none of nbcnn's.

    Returns
    -------
    model : Sequential

    Examples
    --------
    >>> import tempfile, nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, 3)], classes=["a", "b", "c"])
    >>> images = np.zeros((2, 3, 2, 2), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nbcnn.save(model, f"{folder}/model.safetensors")
    ...     again = nbcnn.load(f"{folder}/model.safetensors")
    >>> again.classes, bool((again(images) == model(images)).all())
    (['a', 'b', 'c'], True)
    """
    return load(path, layers).model


def _header_size(start):
    """How many bytes of JSON follow the first eight of a safetensors file."""
    return int.from_bytes(start[:8], "little")


def _build(about, tensors, layers):
    for name, tensor in tensors.items():
        if tensor.dtype not in (about["dtype"], np.int64):
            raise ValueError(f"{name}: expected {about['dtype']}, got {tensor.dtype}")
    momentum = {name: tensors.pop(name) for name in list(tensors) if name.startswith(MOMENTUM)}
    model = Sequential.from_structure(about["structure"], tensors, layers, dtype=about["dtype"],
                                      **{name: about[name] for name in ABOUT_MODEL})
    optimizer = None
    if about["optimizer"] is not None:
        state, parameters = dict(about["optimizer"]), dict(model.named_parameters())
        names = state.pop("params")
        optimizer = SGD([parameters[name] for name in names], lr=0)
        optimizer.load_state_dict({**state, "momentum_buffers": [momentum.pop(MOMENTUM + name, None) for name in names]})
    if momentum:
        raise ValueError(f"momentum of no parameter: {', '.join(momentum)}")
    return Checkpoint(model, optimizer, Progress(**about["progress"]), dict(about["options"]))


def _checksum(about, tensors):
    """A CRC-32 of the description and of every tensor's name, type, shape and bytes."""
    crc = zlib.crc32(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        crc = zlib.crc32(tensor, zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), crc))
    return crc
