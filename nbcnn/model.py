"""Network and Sequential: layers, what each reads, their parameters, and what is known about the images they take."""
import inspect
import json
import keyword
import math
import os
import re
import sys
from collections.abc import Mapping

import numpy as np

from nbcnn import layers as layer_types
from nbcnn.instead import NAMES, nearest
from nbcnn.kernels import turns
from nbcnn.kernels.arguments import (
    SEEDS,
    finite_row,
    float_dtype,
    instance,
    integer,
    ints,
    iterator,
    numeric,
    one_of,
    sequence,
    strings,
)
from nbcnn.kernels.backend import BACKENDS, as_array, load_backend, on_device
from nbcnn.kernels.images import normalization_table
from nbcnn.kernels.shown import one_line, shown
from nbcnn.layers import Layer
from nbcnn.parameter import ParameterVector
from nbcnn.scheduler import BackpropScheduler
from nbcnn.table import format_table

MOST_LAYERS = 5_000     # this and the next bound the time to load a file and to compute its network
MOST_CELLS = 2**27      # cells that pooling windows may read beyond four times the input: about a second
LAYERS = {name: getattr(layer_types, name) for name in layer_types.__all__ if name not in ("Layer", "Activation")}
IMAGES = "input"        # what a network's entries call its images


class Network:
    """A network of layers, each of which reads the images or what layers before it give.

    Parameters
    ----------
    *layers : entries, or one sequence of entries
        Each is (name, layer, inputs), where `inputs` is a list of names, "input" standing for the images; (name, layer) or a layer
        alone reads what the entry before gives, the first one the images. A layer without a name gets its position as name. The
        last entry gives the output.
    input_shape : tuple, optional
        (C, H, W) of an image, or (F,). By default that of the first images trained on; `summary()`, `BackpropScheduler.images` and
        the commands predict and evaluate need it.
    mean, std : sequence of C floats, optional
        uint8 images become (byte / 255 - mean) / std. Images of floats are taken as they are.
    classes : sequence of str, optional
        The names of the outputs, one for each.
    seed : int
        For the initial values. They are drawn in float64 and cast, so that both dtypes get the same.
    dtype : float32 or float64
    state : dict of str to array, optional
        Initial values instead of random ones, as `state_dict` gives them.
    frozen : sequence of str, optional
        The names of parameters that are not trainable: "conv1.weight". By default as the layers say.

    Raises
    ------
    TypeError, ValueError
        When an entry is none; when it reads an unknown name, one that comes later in the list, or another number of inputs than its
        layer takes; when nobody reads what an entry gives. The message names the entry.

    Examples
    --------
    >>> import nbcnn
    >>> model = nbcnn.Network([("conv1", nbcnn.Conv2d(3, 3, 3, padding=1)), ("relu1", nbcnn.ReLU()),
    ...                        ("add1", nbcnn.Add(), ["relu1", "input"]), ("flatten", nbcnn.Flatten()),
    ...                        ("linear1", nbcnn.Linear(3 * 4 * 4, 10))])
    >>> model(np.zeros((2, 3, 4, 4), np.float32)).shape
    (2, 10)
    >>> model.inputs["add1"]
    ('relu1', 'input')
    """

    def __init__(self, *layers, input_shape=None, mean=None, std=None, classes=None, seed=0, dtype=np.float32, state=None,
                 frozen=None):
        layers = layers[0] if len(layers) == 1 and not isinstance(layers[0], Layer) else layers
        self.dtype = float_dtype(dtype, "dtype")
        self.input_shape = None if input_shape is None else ints(input_shape, "input_shape", "a tuple of ints", 1)
        self.mean, self.std = (None if value is None else finite_row(value, name).tolist()
                               for name, value in (("mean", mean), ("std", std)))
        self.classes = None if classes is None else strings(classes, "classes")
        self.seed = integer(seed, "seed", 0, SEEDS)
        self.layers, self.inputs, self.vector, added = {}, {}, None, set()
        layers = layers.items() if isinstance(layers, Mapping) else layers
        before = IMAGES
        for position, item in enumerate(iterator(layers, "layers", "a list of layers or of (name, layer) pairs")):
            name, layer, *inputs = item if isinstance(item, tuple | list) and len(item) in (2, 3) else (str(position), item)
            self._add(name, layer, added)
            self.inputs[name] = self._inputs_of(name, layer, before, *inputs)
            before = name
        if not self.layers:
            raise ValueError("layers: expected at least one layer, got none; write nbcnn.Sequential([layer, ...]), without a class "
                             "derived from it")
        self._require_readers()
        if state is not None:       # a file's shapes are checked before memory is allocated
            state = self._arrays(state)
        called = {tensor: tensor.numpy() for tensor in self.tensors() if tensor.vector is not None}
        self.vector = ParameterVector(self.parameters(), self.dtype, [tensor for _, tensor in self.named_buffers()])
        self._forward = {"f32": BackpropScheduler(self, None)}     # by precision
        if state is not None:
            self.load_state_dict(state)
        else:
            rng = np.random.default_rng(self.seed)
            for parameter in self.parameters():
                parameter.set(parameter.init(rng, parameter.shape))     # even where there are values: the others stay the same
            for tensor, values in called.items():
                tensor.set(values)
        for layer in self.layers.values():
            layer.alone = False
        if frozen is not None:
            self.frozen = frozen
        if self.input_shape is not None:
            outputs = self.output_shape(self.input_shape)
            if self.classes is not None and outputs != (len(self.classes),):
                raise ValueError(f"classes: expected a name for each output, of shape {outputs}, got {len(self.classes)} names")

    def __reduce__(self):
        """How a model is copied and pickled: its structure, its options and its parameters, in new memory."""
        options = {name: getattr(self, name) for name in ("input_shape", "mean", "std", "classes", "seed", "dtype", "frozen")}
        return _rebuilt, (self.structure(), self.state_dict(), self.own_layers(), options)

    def _add(self, name, layer, added):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers: expected layers or (name, layer) pairs, got {shown(layer)} as {shown(name)}")
        if not isinstance(name, str) or not name or "." in name or keyword.iskeyword(name):
            raise ValueError(f"layers: expected a name without dots for {layer!r}, got {shown(name)}")
        if len(self.layers) == MOST_LAYERS:
            raise ValueError(f"layers: expected at most {MOST_LAYERS}, got more")
        if name in self.layers or name in vars(self) or hasattr(type(self), name):
            raise ValueError(f"layers: the name {shown(name)} is taken")
        if (any(t.vector is not None for t in (layer.parameters | layer.buffers).values()) and not layer.alone) or layer in added:
            raise ValueError(f"layers: {shown(name)} is already part of a model; make a new {type(layer).__name__}")
        self.layers[name] = layer
        added.add(layer)

    def _inputs_of(self, name, layer, before, inputs=None):
        """The names of what an entry reads; `before` is that of the entry before it, or of the images."""
        if inputs is None:
            inputs = (before,)
        else:
            known = [IMAGES, *list(self.layers)[:-1]]
            if not isinstance(inputs, list | tuple) or not all(isinstance(value, str) for value in inputs):
                raise TypeError(f"layers: {name}: expected a list of names as its inputs, got {shown(inputs)}")
            if IMAGES in self.layers:
                raise ValueError(f"layers: expected no layer called {IMAGES}, which stands for the images")
            if unknown := [value for value in inputs if value not in known]:
                raise ValueError(f"layers: {name}: expected inputs that come before it in the list, {one_line(', '.join(known))}, "
                                 f"got {shown(unknown[0])}{nearest(unknown[0], known)}")
        if len(inputs) != layer.inputs and (layer.inputs is not None or len(inputs) < 2):
            expected = "two or more inputs" if layer.inputs is None else f"{layer.inputs} input{'s' * (layer.inputs > 1)}"
            hint = f'; write ("{name}", {layer!r}, ["{before}", ...])' if len(inputs) < 2 else ""
            raise ValueError(f"layers: {name}: expected {expected} for {layer!r}, got {', '.join(inputs) or 'none'}{hint}")
        return tuple(inputs)

    def _require_readers(self):
        """Raise ValueError unless somebody reads what each entry but the last gives."""
        read = {value for inputs in self.inputs.values() for value in inputs}
        if unread := [name for name in list(self.layers)[:-1] if name not in read]:
            raise ValueError(f"layers: expected somebody to read what {unread[0]} gives, got none; the last entry is the output")

    def __getattr__(self, name):
        layers = self.__dict__.get("layers")
        if layers is None:
            raise AttributeError(f"the model has no {name!r}: it was not made by nbcnn.Sequential([layer, ...])")
        if name not in layers:
            hint = NAMES["model"].get(name, f"it has {', '.join(layers)}")
            raise AttributeError(f"the model has no layer {name!r}; {hint}")
        return layers[name]

    def __setattr__(self, name, value):
        if isinstance(value, Layer | Network):
            raise TypeError(f"{name}: a layer set as an attribute would never run; write nbcnn.Sequential([...]) with all layers")
        super().__setattr__(name, value)

    def __init_subclass__(cls):
        if "forward" in vars(cls):
            raise TypeError(f"{cls.__name__}: a network runs its layers in their order and calls no forward(x); write "
                            "nbcnn.Sequential([...]) with all layers, or a function that returns it")

    def __getitem__(self, position):
        return list(self.layers.values())[position]

    def __len__(self):
        return len(self.layers)

    def __call__(self, images):
        return self.predict(images)

    def __repr__(self):
        names, rows = [IMAGES, *self.layers], []
        for before, (name, layer) in zip(names, self.layers.items(), strict=False):
            reads = "" if self.inputs[name] == (before,) else f" of {', '.join(self.inputs[name])}"
            rows.append(f"  ({name}): {layer!r}{reads}\n")
        return f"{type(self).__name__}(\n{''.join(rows)})"

    def train(self, mode=True):
        """The model itself: nothing is to be switched. Training steps are in training mode, and all else is in evaluation mode."""
        return self

    def eval(self):
        """The model itself; see `train`."""
        return self

    def predict(self, images, batch_size=256, precision="f32"):
        """Logits of a batch of images. Any number of threads may call this at once: they take turns.

        Parameters
        ----------
        images : uint8 or float array (N, C, H, W)
            Bytes are normalised with the model's mean and std. Floats are taken as they are: they must be normalised already.
            Of NumPy or, for a model on a GPU, a float device array.
        batch_size : int
            How many images are computed at a time, or fewer where memory is short. No bit of the result depends on it. A device
            array is one batch.
        precision : {"f32", "bf16"}
            As of `nbcnn.BackpropScheduler`.

        Returns
        -------
        logits : float array (N, classes)
            A device array for a device array.
        """
        images = as_array(images, "images")
        step = integer(batch_size, "batch_size", 1)
        forward = self._forward.get(precision) if isinstance(precision, str) else None
        if forward is None:
            forward = BackpropScheduler(self, None, precision=precision)
            self._forward[precision] = forward
        if on_device(images):
            return forward.predict(images)
        step, shape = forward.at_once(images, step)
        logits = np.empty((len(images), *shape), self.dtype)        # first, as it may not fit into memory
        for start in range(0, len(images), step) or [0]:
            logits[start:start + step] = forward.predict(images[start:start + step])
        return logits

    @property
    def device(self):
        """Where the parameters are and the model computes: "cpu" or "cuda"."""
        return self.vector.backend.device

    def to(self, device):
        """Move the parameters to another device; the model computes there from then on.

        Its optimizers and schedulers follow by themselves.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Returns
        -------
        model : Network or Sequential
            The model itself.

        Raises
        ------
        ValueError
            When there is no such device.
        ImportError
            When numba-cuda is not installed.
        RuntimeError
            When no GPU can be used; the message says why.
        """
        backend = load_backend(one_of(device, "device", BACKENDS))
        backend.require()
        self.vector.move(backend)
        return self

    def named_parameters(self):
        """A list of (name, Parameter): "conv1.weight", "conv1.bias", ..."""
        return [(f"{layer_name}.{name}", parameter)
                for layer_name, layer in self.layers.items() for name, parameter in layer.parameters.items()]

    def parameters(self):
        """All Parameters, in the order of the layers."""
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def frozen(self):
        """The names of the parameters that are not trainable. It may be set between two steps."""
        return [name for name, parameter in self.named_parameters() if not parameter.trainable]

    @frozen.setter
    def frozen(self, names):
        names, parameters = strings(names, "frozen"), dict(self.named_parameters())
        if unknown := [name for name in names if name not in parameters]:
            raise ValueError(f"frozen: expected names of parameters, got {one_line(unknown[0])}{nearest(unknown[0], parameters)}")
        for name, parameter in parameters.items():
            parameter.trainable = name not in names

    def named_buffers(self):
        """A list of (name, Statistic): what layers keep and no gradient changes, as running means."""
        return [(f"{layer_name}.{name}", tensor)
                for layer_name, layer in self.layers.items() for name, tensor in layer.buffers.items()]

    def named_tensors(self):
        """A list of (name, Parameter or Statistic), layer by layer: the entries of `state_dict`."""
        return [(f"{layer_name}.{name}", tensor)
                for layer_name, layer in self.layers.items() for name, tensor in (layer.parameters | layer.buffers).items()]

    def tensors(self):
        """All Parameters and Statistics, in the order of the layers."""
        return [tensor for _, tensor in self.named_tensors()]

    def state_dict(self):
        """Copies of parameters and buffers, contiguous, with PyTorch's names and shapes, all from between the same two updates."""
        with turns.lock:
            return {name: tensor.numpy() for name, tensor in self.named_tensors()}

    def load_state_dict(self, state):
        """Take over parameters and buffers. Another thread predicts with all of the old ones, or with all of the new ones.

        Parameters
        ----------
        state : dict of str to array
            As `state_dict` gives it; values are cast to the model's dtype.

        Raises
        ------
        TypeError
            When `state` is no mapping, or a value no array of numbers.
        ValueError
            When names are missing or unexpected or a shape differs. The message lists all of them, and nothing is changed.
        """
        arrays = self._arrays(state)
        with turns.lock:
            for name, tensor in self.named_tensors():
                tensor.set(arrays[name])

    def _arrays(self, state):
        """The arrays of a state by name, on the host or on a device; raises as `load_state_dict`."""
        if isinstance(state, Network):
            raise TypeError("state: expected arrays by name, as state_dict() gives them, got a model, which needs no more loading")
        instance(state, "state", Mapping, "arrays by name, as state_dict() gives them")
        arrays = {instance(name, "state", str, "names"): numeric(value, f"state[{shown(name)}]") for name, value in state.items()}
        own = dict(self.named_tensors())
        faults = [f"missing {name} {own[name].shape}" for name in own if name not in arrays]
        faults += [f"unexpected {one_line(name)} {shown(arrays[name].shape)}" for name in arrays if name not in own]
        faults += [f"{name} expected shape {own[name].shape}, got {shown(arrays[name].shape)}"
                   for name in own if name in arrays and arrays[name].shape != own[name].shape]
        if faults:
            raise ValueError(f"state: {one_line('; '.join(faults), 1000)}")
        return arrays

    def save(self, path):
        """`nbcnn.save(model, path)`."""
        from nbcnn.checkpoint import save_model  # it imports this module
        save_model(self, path)

    def evaluate(self, dataset, loss=None, batch_size=256, views=1, precision="f32"):
        """`nbcnn.evaluate(model, dataset, loss, batch_size, views, precision)`."""
        from nbcnn.evaluation import evaluate  # it imports this module, too
        return evaluate(self, dataset, loss, batch_size, views, precision)

    def table(self, channels):
        """The table (channels, 256) that uint8 images of so many channels are normalised with."""
        return normalization_table(self.mean, self.std, channels, self.dtype)

    def shapes(self, input_shape):
        """The shape of a sample after each layer, by the layer's name.

        Raises
        ------
        ValueError
            When a layer cannot take the output of the one before; the message names the layer and both shapes.
        """
        given, shapes = ints(input_shape, "input_shape", "a tuple of ints", 0), {}
        cells, most = 0, MOST_CELLS
        for name, layer in self.layers.items():
            before = self.input_shapes(name, shapes, given)
            try:
                shapes[name] = layer.output_shape(before)
                cells, most = cells + layer.window_cells(before), most + 4 * math.prod(before if layer.inputs == 1 else before[0])
                if cells > most:
                    raise ValueError(f"expected windows that read at most {most:,} cells of a plane in all layers up to here, got "
                                     f"{cells:,}; a larger stride or a smaller kernel reads fewer")
            except ValueError as error:
                of = f" of {' and '.join(self.inputs[name])}" if len(self.inputs[name]) > 1 else ""
                raise ValueError(f"{name}{of}: {error}") from None
        return shapes

    def input_shapes(self, name, shapes, input_shape):
        """What `shapes` says of what a layer reads: a shape, or a tuple of shapes for one that takes several inputs."""
        found = tuple(shapes.get(value, tuple(input_shape)) for value in self.inputs[name])
        return found[0] if self.layers[name].inputs == 1 else found

    def output_shape(self, input_shape):
        """The shape of a sample after the last layer; raises as `shapes`."""
        return list(self.shapes(input_shape).values())[-1]

    def summary(self, input_shape=None):
        """A table of the layers: output shape, parameters, and MFLOP of forward, for a sample, by default of the model's shape."""
        given = self.input_shape if input_shape is None else ints(input_shape, "input_shape", "a tuple of ints", 1)
        shapes = self.shapes(given) if given else {}
        rows, total = [], 0
        for name, layer in self.layers.items():
            flop = layer.flop(self.input_shapes(name, shapes, given)) if shapes else 0
            count, total = sum(parameter.size for parameter in layer.parameters.values()), total + flop
            rows.append([name, _written(layer), " x ".join(map(str, shapes[name])) if shapes else "?", f"{count:,}",
                         f"{flop / 1e6:.2f}" if shapes else "?"])
        count = sum(parameter.size for parameter in self.parameters())
        rows.append(["total", "", "", f"{count:,}", f"{total / 1e6:.2f}" if shapes else "?"])
        return format_table(["layer", "", "output", "parameters", "MFLOP"], rows)

    def own_layers(self):
        """The classes of layers that are none of nbcnn's: what `from_structure` and `nbcnn.load` are to be given."""
        kinds = dict.fromkeys(map(type, self.layers.values()))
        return [kind for kind in kinds if LAYERS.get(kind.__name__) is not kind]

    def structure(self):
        """The layers as plain data, from which the model can be built again.

        Each is [name, type, arguments]; one that is none of nbcnn's has the module or file of its class as a fourth entry. In a
        Network that is None for the others, and a fifth entry has the names of what the layer reads.

        Raises
        ------
        TypeError
            When JSON cannot hold the arguments of a layer.
        ValueError
            When a layer's `arguments` are not those of its constructor, or two classes have one name.
        """
        own = classes_by_name(self.own_layers()).values()
        entries = [_entry(name, layer, type(layer) in own) for name, layer in self.layers.items()]
        if isinstance(self, Sequential):
            return entries
        return [[*entry, *[None] * (4 - len(entry)), list(self.inputs[entry[0]])] for entry in entries]

    @staticmethod
    def from_structure(structure, state=None, layers=(), **options):
        """The model that `structure` describes, with the parameters in `state`. The other options are those of the constructor.

        It is a Sequential, but a Network where entries say what they read.

        Parameters
        ----------
        structure : list
            As `structure()` gives it.
        state : dict of str to array, optional
        layers : sequence of classes
            Those of the layers that are none of nbcnn's. Nothing is imported.

        Raises
        ------
        MissingLayer
            A ValueError: when a class is in neither.
        TypeError
            When `layers` are no classes of layers.
        ValueError
            When the structure describes no model, or `state` does not fit.
        """
        own, structure = classes_by_name(layers), list(structure)
        kind = Network if any(len(entry) > 4 for entry in structure) else Sequential
        return kind([(entry[0], _layer(own, *entry[:4]), *entry[4:]) for entry in structure], state=state, **options)

class Sequential(Network):
    """A network whose layers follow one another.

    Parameters
    ----------
    *layers : layers, or one sequence of layers or of (name, layer) pairs, or one mapping of names to layers
        A layer without a name gets its position as name, "0", "1", ..., as in PyTorch.
    **options
        As of `Network`.

    Examples
    --------
    >>> import nbcnn
    >>> model = nbcnn.Sequential([("conv1", nbcnn.Conv2d(3, 8, 3, padding=1)), ("maxpool1", nbcnn.MaxPool2d(2)),
    ...                           ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(8 * 4 * 4, 10))])
    >>> model(np.zeros((2, 3, 8, 8), np.uint8)).shape
    (2, 10)
    >>> model.conv1.weight.data.shape, model[-1].bias.grad
    ((8, 3, 3, 3), None)
    """

    def _inputs_of(self, name, layer, before, inputs=None):
        if inputs is not None:
            raise ValueError(f"layers: {name}: expected no inputs in a Sequential, whose layers follow one another, got "
                             f"{shown(inputs)}; write nbcnn.Network([...])")
        return super()._inputs_of(name, layer, before)


class MissingLayer(ValueError):
    """A structure has a layer that is none of nbcnn's, and its class was not given."""


def classes_by_name(layers):
    """Classes of layers of one's own by their names; TypeError or ValueError where they are none, or two have one name."""
    found = {}
    for kind in sequence(layers, "layers", "a list of classes derived from nbcnn.Layer"):
        if not isinstance(kind, type) or not issubclass(kind, Layer):
            raise TypeError(f"layers: expected classes derived from nbcnn.Layer, got {shown(kind)}")
        if found.setdefault(kind.__name__, kind) is not kind:
            raise ValueError(f"layers: expected one class of each name, got two that are called {kind.__name__}")
    return found


def _written(layer):
    """The layer as one writes it: Conv2d(3, 32, 5, padding=2)."""
    text = repr(layer)
    for parameter in inspect.signature(type(layer)).parameters.values():
        if f"{parameter.name}=" not in text or parameter.kind is parameter.KEYWORD_ONLY:        # the others need their names
            break
        text = re.sub(rf"(?<=[( ]){parameter.name}=", "", text, count=1)
    return text


def _entry(name, layer, own):
    """The entry of a layer in a structure."""
    kind, arguments = type(layer), dict(layer.arguments)
    if not own:
        return [name, kind.__name__, arguments]
    expected = list(inspect.signature(kind).parameters)
    if list(arguments) != expected:
        raise ValueError(f"layers: {name}: expected self.arguments of {kind.__name__} to hold what its constructor takes, "
                         f"{', '.join(expected) or 'nothing'}, to make it again; got {', '.join(arguments) or 'nothing'}")
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise TypeError(f"layers: {name}: expected numbers, strings and lists of them in self.arguments, got "
                        f"{one_line(str(error))}") from None
    place = kind.__module__
    if place == "__main__":
        place = os.path.basename(getattr(sys.modules[place], "__file__", place))
    return [name, kind.__name__, arguments, place]


def _layer(own, name, kind, arguments, place=None):
    """The layer that an entry of a structure describes. Its class is one of nbcnn's, or of `own` where the entry has a place."""
    known = LAYERS if place is None else own
    if isinstance(kind, str) and kind in known:
        return known[kind](**arguments)
    if place is None or not isinstance(kind, str):
        raise ValueError(f"structure: unknown layer type {shown(kind)} for {shown(name)}")
    name, kind, place = (one_line(str(value), 50) for value in (name, kind, place))
    raise MissingLayer(f"layer {name} is a {kind} from {place}, none of nbcnn's, and loading imports nothing; give the file that "
                       "defines it with --model FILE.py, or in Python the class, nbcnn.load(path, layers=[...])")


def _rebuilt(structure, state, layers, options):
    """The model that `Network.__reduce__` describes."""
    return Network.from_structure(structure, state, layers, **options)
