"""What TensorBoard shows of a training: curves, histograms, filters, images, feature maps and the graph of the network.

    from tensorboardX import SummaryWriter      # or torch.utils.tensorboard's

    with SummaryWriter("runs/mine") as writer:
        nbcnn.fit(model, train, test, epochs=6, writer=writer)
        nbcnn.tensorboard.add_filters(writer, model, "conv2", step=6)

Every function takes the writer first. A step is an epoch, counted from 1, in all that `nbcnn.fit` writes.
"""
import math

import numpy as np

from nbcnn.datasets import Dataset
from nbcnn.kernels.arguments import instance, integer, one_of
from nbcnn.kernels.backend import as_array
from nbcnn.kernels.shown import one_line
from nbcnn.layers import require_network
from nbcnn.scheduler import BackpropScheduler

BINS = 64               # of a histogram
MOST_PIXELS = 2**14     # of a layer's feature maps together: to write a thousand takes 0.4 ms
MOST_FILTERS = 2**10    # pairs of an input and an output


def add_epoch(writer, state, train):
    """Write an epoch that `nbcnn.fit` has finished: what it calls after each, where it has a writer.

    These are the functions below, with the filters of the first convolution and the feature maps of the first training image.
    Gradients are those of the epoch's last batch. The graph and the first images come with the first epoch of a call of `fit`.

    Parameters
    ----------
    writer : SummaryWriter
    state : State
    train : Dataset
    """
    model, metrics = state.model, state.history[-1]
    step = metrics["epoch"]
    add_metrics(writer, metrics)
    add_gradient_norms(writer, model, step)
    add_histograms(writer, model, step)
    for name in _convolutions(model)[:1]:
        add_filters(writer, model, name, step)
    add_feature_maps(writer, model, train.images[0], step)
    if len(state.history) == 1:
        add_graph(writer, model, train.images.shape[1:])
        add_images(writer, train)


def add_metrics(writer, metrics):
    """Write the numbers of an epoch as scalars: loss/train, loss/test, accuracy/test, lr and others.

    Parameters
    ----------
    writer : SummaryWriter
    metrics : dict
        A row of `State.history`, or of a metrics.csv.
    """
    require_writer(writer)
    for name, value in metrics.items():
        part, _, kind = name.rpartition("_")
        if name != "epoch" and value not in (None, ""):
            writer.add_scalar(f"{kind}/{part}" if kind in ("loss", "accuracy") else name, float(value), int(metrics["epoch"]))


def add_gradient_norms(writer, model, step=None):
    """Write the length of each layer's gradient, of weight and bias together, as a scalar gradient_norm/NAME.

    Layers whose gradients are None are left out.

    Parameters
    ----------
    writer : SummaryWriter
    model : Network or Sequential
    step : int, optional
    """
    require_writer(writer)
    require_network(model)
    for name, layer in model.layers.items():
        gradients = [_host(model, p.grad) for p in layer.parameters.values() if p.grad is not None]
        if gradients:
            norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients))
            writer.add_scalar(f"gradient_norm/{name}", norm, step)


def add_histograms(writer, model, step=None):
    """Write a histogram of each parameter, parameters/NAME, and of each gradient that is not None, gradients/NAME.

    Parameters
    ----------
    writer : SummaryWriter
    model : Network or Sequential
    step : int, optional

    Raises
    ------
    ValueError
        When a number is not finite.
    """
    require_writer(writer)
    require_network(model)
    for name, parameter in model.named_parameters():
        _add_histogram(writer, f"parameters/{name}", parameter.numpy(), step)
        if parameter.grad is not None:
            _add_histogram(writer, f"gradients/{name}", _host(model, parameter.grad), step)


def add_filters(writer, model, layer, step=None):
    """Write the weights of a convolution as an image filters/NAME, black where they are smallest.

    Filters of three channels are coloured; of others there is a row for each output, with a grey image for each input. Of a large
    convolution it is the first rows.

    Parameters
    ----------
    writer : SummaryWriter
    model : Network or Sequential
    layer : str
        The convolution's name.
    step : int, optional
    """
    require_writer(writer)
    require_network(model)
    one_of(layer, "layer", _convolutions(model))
    weight = model.layers[layer].weight.numpy()
    channels = weight.shape[1]
    columns = None if channels in (1, 3) else channels
    writer.add_image(f"filters/{layer}", _grid(weight[:max(1, MOST_FILTERS // (columns or 1))], layer, columns), step)


def add_images(writer, dataset, count=16, step=0):
    """Write the first images of a data set as one image, images.

    Parameters
    ----------
    writer : SummaryWriter
    dataset : Dataset
    count, step : int
    """
    require_writer(writer)
    images = instance(dataset, "dataset", Dataset).images[:integer(count, "count", 1)]
    if len(images):
        writer.add_image("images", _grid(images, "dataset"), step)


def add_feature_maps(writer, model, image, step=None, pixels=MOST_PIXELS):
    """Write what each layer makes of an image, as images feature_maps/NAME: a map for each channel, and a pixel for each number.

    Parameters
    ----------
    writer : SummaryWriter
    model : Network or Sequential
    image : uint8 or float array (C, H, W)
    step : int, optional
    pixels : int
        How many pixels the maps of a layer may have together; it is the first maps, at least one.

    Raises
    ------
    ValueError
        When the network cannot take the image, or a number is not finite.
    """
    require_writer(writer)
    scheduler = BackpropScheduler(model, None, fuse=False)
    scheduler.predict(as_array(image, "image")[None])
    for name, output in scheduler.outputs.items():
        maps = _host(model, output)[0]
        maps = maps.reshape(len(maps), 1, *(maps.shape[1:] or (1, 1)))
        maps = maps[:max(1, integer(pixels, "pixels", 1) // maps[0].size)]
        writer.add_image(f"feature_maps/{name}", _grid(maps, name), step)


def add_graph(writer, model, input_shape=None):
    """Write the graph of the network: layers with their arguments, shapes and parameters.

    Parameters
    ----------
    writer : SummaryWriter
    model : Network or Sequential
    input_shape : tuple, optional
        Of an image, by default the model's. Without either the graph has no shapes of outputs.

    Raises
    ------
    ImportError
        When neither tensorboardX nor tensorboard is installed.
    ValueError
        When the writer is closed, or a layer cannot take the output of the one before.
    """
    require_writer(writer)
    require_network(model)
    if (events := getattr(writer, "file_writer", None)) is None:
        raise ValueError("writer: expected an open SummaryWriter, got a closed one")
    shape = model.input_shape if input_shape is None else input_shape
    shapes, graph = {} if shape is None else model.shapes(shape), _new_graph()

    def add(name, kind, inputs, shape, attributes):
        node = graph.node.add(name=name, op=kind, input=inputs)
        if shape is not None:
            node.attr["_output_shapes"].list.shape.add(dim=[{"size": size} for size in shape])
        for key, value in attributes.items():
            node.attr[key].s = str(value).encode()
        return name
    # No layer has a name with a dot. -1 is a size that is not known, here that of a batch.
    before = add("input.images", "Input", [], shape and (-1, *shape), {})
    for name, layer in model.layers.items():
        inputs = [before, *(add(f"{name}/{part}", "Parameter", [], parameter.shape, {"parameters": parameter.size})
                            for part, parameter in layer.parameters.items())]
        kind, count = type(layer).__name__, sum(parameter.size for parameter in layer.parameters.values())
        before = add(f"{name}/{kind}" if count else name, kind, inputs, (-1, *shapes[name]) if shapes else None,
                     {**layer.arguments, "parameters": count})
    events.add_onnx_graph(graph)        # the one method of both libraries that takes any graph


def require_writer(writer):
    """Raise TypeError unless the writer can write all of this."""
    if not all(callable(getattr(writer, name, None)) for name in ("add_scalar", "add_histogram_raw", "add_image")):
        raise TypeError("writer: expected a SummaryWriter of tensorboardX or torch.utils.tensorboard, "
                        f"got {one_line(type(writer).__name__)}")
    return writer


def _new_graph():
    """An empty graph, as either library defines it: a writer takes both."""
    try:
        from tensorboardX.proto.graph_pb2 import GraphDef
    except ImportError:
        try:
            from tensorboard.compat.proto.graph_pb2 import GraphDef
        except ImportError:
            raise ImportError("add_graph needs the extra tensorboard: python -m pip install tensorboardX") from None
    return GraphDef()


def _convolutions(model):
    """The names of the layers whose weights are small images."""
    return [name for name, layer in model.layers.items() if layer.weight is not None and len(layer.weight.shape) == 4]


def _host(model, array):
    """An array of a model's device, of NumPy."""
    return model.vector.backend.to_host(array)


def _add_histogram(writer, name, values, step):
    """Write a histogram. A writer's own would take ten times as long, for more bins than are shown."""
    values = _finite(values, name).astype(np.float64).reshape(-1)
    least, most = values.min().item(), values.max().item()
    low, high = (least, most) if least < most else (least - 0.5, most + 0.5)
    counts = np.bincount(np.minimum((values - low) / (high - low) * BINS, BINS - 1).astype(np.int64), minlength=BINS)
    limits = np.linspace(low, high, BINS + 1)[1:]
    writer.add_histogram_raw(name, least, most, values.size, values.sum().item(), np.square(values).sum().item(), limits.tolist(),
                             counts.tolist(), step)


def _grid(images, name, columns=None):
    """Images (N, C, H, W) side by side in one uint8 image; floats from their smallest, black, to their largest."""
    if images.dtype != np.uint8:
        low, high = _finite(images, name).min(), images.max()
        images = np.uint8((images - low) * (255 / ((high - low) or 1)))
    if images.shape[1] not in (1, 3):
        images = images.reshape(-1, 1, *images.shape[2:])
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows, gap = -(-count // columns), int(height * width > 1)
    cells = np.zeros((rows * columns, channels, height + gap, width + gap), np.uint8)
    cells[:count, :, :height, :width] = images
    return cells.reshape(rows, columns, *cells.shape[1:]).transpose(2, 0, 3, 1, 4).reshape(
        channels, rows * (height + gap), columns * (width + gap))


def _finite(values, name):
    """The values; ValueError where one is not finite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return values
