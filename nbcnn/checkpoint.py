"""Checkpoints: one safetensors file with all that is needed to go on with a training, or to use the model.

Tensors: the model's state with PyTorch's names and shapes; what the optimizer keeps for each parameter,
`optimizer.momentum_buffer.<name>` for instance; `slow.<name>` and `ema.<name>`, what Lookahead and EMA have for it all.
The metadata holds one entry, "nbcnn", in JSON: the structure of the model, what it knows of its images and classes, the optimizer's
class and groups, how far the training is, and the options it was started with. Floats are written so that they read back with the
same bits. Files of format 1, which had SGD with one group and `optimizer.momentum.<name>`, are read too.
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
from nbcnn.kernels.arguments import INT64, integer, numeric
from nbcnn.kernels.shown import one_line
from nbcnn.layers import require_network
from nbcnn.memory import machine_memory
from nbcnn.model import MissingLayer, Network, classes_by_name
from nbcnn.optim import EMA, SGD, Adam, AdamW, Lookahead, Optimizer
from nbcnn.optim.average import lent
from nbcnn.progress import Progress

FORMAT = 2
PYTORCH = int.from_bytes(b"PK\3\4", "little")      # a zip file, which torch.save writes
MOST_HEADER = 10**7     # bytes of the description; as Python objects it takes many times that
OPTIMIZERS = {kind.__name__: kind for kind in (SGD, Adam, AdamW)}
ABOUT_MODEL = ("input_shape", "mean", "std", "classes", "seed", "frozen")


@dataclass
class Checkpoint:
    """What `load` gives.

    Attributes
    ----------
    model : Network
    optimizer : Optimizer or None
        With all that it keeps. Of a Lookahead whose decay was a function the attribute `decay` is to be set again.
    progress : Progress
    options : dict
    ema : EMA or None
    """
    model: Network
    optimizer: Optimizer | None
    progress: Progress
    options: dict
    ema: EMA | None = None

    def averaged(self):
        """The model; with the averaged values from now on, where there is an average: these are the ones to be used."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.state_dict())
        return self.model


def save(path, model, *, optimizer=None, progress=None, options=None, ema=None):
    """Write a checkpoint. An old file stays until the new one is complete.

    Parameters
    ----------
    path : path
    model : Network
    optimizer : SGD, Adam, AdamW, or Lookahead with one of these, optional
    progress : Progress, optional
    options : dict, optional
        Anything that JSON can hold.
    ema : EMA, optional

    Raises
    ------
    OSError
        When the file cannot be written.
    TypeError
        When `model` is none, or the optimizer none of these, or JSON cannot hold the options.
    ValueError
        When the optimizer or the EMA is another model's; when the structure has no description, see `Sequential.structure`, or
        this is larger than `load` takes.
    """
    write_atomically(path, to_bytes(model, optimizer, progress, options, ema))


def to_bytes(model, optimizer=None, progress=None, options=None, ema=None):
    """The bytes that `save` writes. For what `load` gave they are the bytes that it read."""
    require_network(model)
    about = {"format": FORMAT, "structure": model.structure(), **{name: getattr(model, name) for name in ABOUT_MODEL},
             "dtype": model.dtype.name, "optimizer": None, "lookahead": None, "ema": None,
             "progress": asdict(progress or Progress()), "options": options or {}}
    for name, vector in (("optimizer", optimizer and optimizer.vector), ("ema", ema and ema.model.vector)):
        if vector not in (None, model.vector):
            raise ValueError(f"{name}: expected that of the model, got another one's")
    with turns.lock:        # another thread may train: all values are taken between the same two updates
        tensors, about["steps"] = model.state_dict(), int(model.vector.backend.to_host(model.vector.steps)[0])
        if isinstance(optimizer, Lookahead):
            state = optimizer.state_dict()
            about["lookahead"] = {name: state[name] for name in ("every", "decay", "steps")}
            tensors |= _averaged(model, "slow", optimizer.slow)
            optimizer = optimizer.optimizer
        if optimizer is not None:
            about["optimizer"], slots = _optimizer_state(model, optimizer)
            tensors |= slots
        if ema is not None:
            about["ema"] = {"decay": ema.decay}
            tensors |= _averaged(model, "ema", ema.average)
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
        if about["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {about['format']!r}, this version of nbcnn reads 1 and {FORMAT}")
        if about.pop("crc32") != _checksum(about, tensors):
            raise ValueError("its contents do not match their checksum")
        if about["format"] == 1:
            _renew(about, tensors)
        return _build(about, tensors, layers)
    except MissingLayer as error:
        raise MissingLayer(f"{path}: {error}") from None
    except Exception as error:      # a damaged or hostile file may raise anything
        reason = f"it has no entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not a readable checkpoint: {one_line(str(reason), 300)}") from None


def save_model(model, path):
    """Write a model (a Network or Sequential), with all that `nbcnn.load` needs, to a file: `nbcnn.save`. Raises as `save`."""
    save(path, model)


def load_model(path, layers=()):
    """Read the model of a checkpoint, ready to predict, with averaged values where it has some: `nbcnn.load`. Raises as `load`.

    Parameters
    ----------
    path : path
    layers : sequence of classes
        Those of the model's layers that are none of nbcnn's.

    Returns
    -------
    model : Network or Sequential

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
    return load(path, layers).averaged()


def _header_size(start):
    """How many bytes of JSON follow the first eight of a safetensors file."""
    return int.from_bytes(start[:8], "little")


def _optimizer_state(model, optimizer):
    """What a description holds of an optimizer, and the tensors that it keeps for the parameters."""
    kind = type(optimizer).__name__
    if OPTIMIZERS.get(kind) is not type(optimizer):
        raise TypeError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {kind}")
    names, state, tensors = {parameter: name for name, parameter in model.named_parameters()}, optimizer.full_state(), {}
    params = [names[parameter] for parameter in optimizer.params]
    for slot in optimizer.slots:
        tensors |= {f"optimizer.{slot}.{name}": value for name, value in zip(params, state.pop(f"{slot}s"), strict=True)
                    if value is not None}
    for group in state["param_groups"]:
        group["params"] = [params[position] for position in group["params"]]
    return {"class": kind, **state}, tensors


def _averaged(model, name, values):
    """The tensors that the model has with other values in its vector, with names that begin with `name`."""
    with lent(model.vector, values):
        return {f"{name}.{key}": tensor.numpy() for key, tensor in model.named_tensors() if tensor.dtype == model.dtype}


def _renew(about, tensors):
    """Make a description of format 1 one of this format: SGD had one group, whose options stood by their names."""
    about.update(format=FORMAT, frozen=[], steps=0, lookahead=None, ema=None)
    if about["optimizer"] is not None:
        group = about["optimizer"]
        about["optimizer"] = {"class": "SGD", "param_groups": [{**group, "initial_lr": group["lr"]}]}
    for name in list(tensors):
        if name.startswith("optimizer.momentum."):
            tensors[name.replace("momentum", "momentum_buffer", 1)] = tensors.pop(name)


def _build(about, tensors, layers):
    others = {name: tensors.pop(name) for name in list(tensors) if name.count(".") > 1}      # a model's own names have one dot
    model = Network.from_structure(about["structure"], tensors, layers, dtype=about["dtype"],
                                   **{name: about[name] for name in ABOUT_MODEL})
    kinds = {name: tensor.dtype for name, tensor in model.named_tensors()}
    for name, tensor in (tensors | others).items():
        if tensor.dtype != kinds.get(name, model.dtype):
            raise ValueError(f"{name}: expected {kinds.get(name, model.dtype)}, got {tensor.dtype}")
    model.vector.steps[0] = integer(about["steps"], "steps", 0, INT64)
    optimizer = ema = None
    if about["optimizer"] is not None:
        optimizer = _built_optimizer(about["optimizer"], others, model)
    if about["lookahead"] is not None:
        every, decay, steps = (about["lookahead"][name] for name in ("every", "decay", "steps"))
        optimizer = Lookahead(optimizer, every, _lost if decay is None else decay)
        optimizer.steps = integer(steps, "steps", 0, INT64)
        _take_over(model, "slow", others, optimizer.slow)
    if about["ema"] is not None:
        ema = EMA(model, about["ema"]["decay"])
        _take_over(model, "ema", others, ema.average)
    if others:
        raise ValueError(f"tensors of nothing that it describes: {', '.join(others)}")
    return Checkpoint(model, optimizer, Progress(**about["progress"]), dict(about["options"]), ema)


def _built_optimizer(state, tensors, model):
    """The optimizer that a description holds; it takes its tensors out of `tensors`."""
    state, parameters = dict(state), dict(model.named_parameters())
    kind, groups = OPTIMIZERS[state.pop("class")], state.pop("param_groups")
    optimizer = kind([{"params": [parameters[name] for name in group["params"]]} for group in groups], lr=0)
    names = [name for group in groups for name in group["params"]]
    position = {name: k for k, name in enumerate(names)}
    groups = [{**group, "params": [position[name] for name in group["params"]]} for group in groups]
    slots = {f"{slot}s": [tensors.pop(f"optimizer.{slot}.{name}", None) for name in names] for slot in optimizer.slots}
    optimizer.load_state_dict({"param_groups": groups, **state, **slots})
    return optimizer


def _take_over(model, name, tensors, values):
    """Write what `_averaged` gave into a flat array; it is taken out of `tensors`."""
    with lent(model.vector, values):
        for key, tensor in model.named_tensors():
            if tensor.dtype == model.dtype:
                tensor.set(numeric(tensors.pop(f"{name}.{key}"), f"{name}.{key}", tensor.shape, "that of the model's"))
        model.vector.backend.write(values, model.vector.data)


def _lost(step):
    """The decay of a Lookahead that had a function."""
    raise RuntimeError("decay: expected the function that the Lookahead had, which a file cannot hold; set optimizer.decay again")


def _checksum(about, tensors):
    """A CRC-32 of the description and of every tensor's name, type, shape and bytes."""
    crc = zlib.crc32(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        crc = zlib.crc32(tensor, zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), crc))
    return crc
