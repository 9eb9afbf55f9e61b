"""Networks drawn at random, of all layers, whose values have several readers; and what PyTorch makes of the same ones."""
import nbcnn

import oracles

OUTPUTS = 3
IMAGES = 2, 8, 7        # (C, H, W)


class Draw:
    """The entries of a network, drawn one after another. `values` are the names of what can be read, with shapes."""

    def __init__(self, rng):
        self.rng, self.entries, self.values, self.read = rng, [], {"input": IMAGES}, set()

    def add(self, layer, *inputs):
        """The name of one more entry."""
        name = f"{type(layer).__name__.lower()}{len(self.entries)}"
        shapes = tuple(self.values[value] for value in inputs)
        self.values[name] = layer.output_shape(shapes[0] if layer.inputs == 1 else shapes)
        self.entries.append((name, layer, list(inputs)))
        self.read.update(inputs)
        return name

    def one_of(self, names):
        return str(self.rng.choice(list(names)))

    def size(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def of_one(self, value):
        """A layer of one input that takes images of this value's shape."""
        C, *size = self.values[value]
        window, small, flag = self.size(1, min(3, *size)), min(size) < 3, bool(self.size(0, 1))
        layers = [
            lambda: nbcnn.Conv2d(C, self.size(1, 5), window, stride=self.size(1, 2), padding=self.size(0, 2), bias=flag),
            lambda: nbcnn.Conv2d(C, self.size(1, 5), (1, min(2, size[1])), padding=1, dilation=self.size(1, 2)),
            lambda: nbcnn.Conv2d(C, 2 * C, window, padding="same", groups=C, bias=flag),
            lambda: nbcnn.MaxPool2d(window, stride=self.size(1, 2), ceil_mode=flag),
            lambda: nbcnn.AvgPool2d(window, padding=window // 2, count_include_pad=flag),
            lambda: nbcnn.AdaptiveAvgPool2d((self.size(1, 5), None)),
            lambda: nbcnn.BatchNorm2d(C, affine=flag), lambda: nbcnn.BatchNorm2d(C, momentum=None, track_running_stats=flag),
            nbcnn.ReLU, lambda: nbcnn.LeakyReLU(0.2), nbcnn.Tanh, nbcnn.Sigmoid, nbcnn.GELU, lambda: nbcnn.GELU("tanh"),
            lambda: nbcnn.Scale(float(self.rng.normal())), nbcnn.Identity,
            lambda: nbcnn.Dropout(float(self.rng.random())), lambda: nbcnn.Dropout2d(0.3),
        ]
        return layers[self.size(0, 1 if small and flag else len(layers) - 1)]()

    def step(self):
        """One or more entries, of something that was drawn before."""
        value, kind = self.one_of(self.values), self.size(0, 9)
        shape = self.values[value]
        same = [name for name, other in self.values.items() if other == shape]
        fitting = [name for name, other in self.values.items() if other[1:] == shape[1:]]
        if kind < 5:
            self.add(self.of_one(value), value)
        elif kind < 7:
            self.add(nbcnn.Add(), value, *(self.one_of(same) for _ in range(self.size(1, 2))))
        elif kind < 9:
            self.add(nbcnn.Concat(), value, *(self.one_of(fitting) for _ in range(self.size(1, 2))))
        elif min(shape[1:]) >= 4:       # computed in one go, where nobody else reads what is between
            conv = self.add(nbcnn.Conv2d(shape[0], self.size(1, 4), 3, padding=1), value)
            self.add(nbcnn.MaxPool2d(2), self.add(nbcnn.ReLU(), conv) if self.size(0, 1) else conv)

    def end(self):
        """What nobody has read becomes vectors, which are joined or added up."""
        vectors = []
        for value in [value for value in self.values if value not in self.read]:
            if self.size(0, 1):
                value = self.add(nbcnn.GlobalAvgPool2d(), value)
            value = self.add(nbcnn.Flatten(), value)
            vectors.append(self.add(nbcnn.BatchNorm1d(*self.values[value]), value) if self.size(0, 1) else value)
        if len(vectors) > 1 and self.size(0, 1):
            vectors = [self.add(nbcnn.Concat(), *vectors)]
        vectors = [self.add(nbcnn.Linear(*self.values[value], OUTPUTS, bias=bool(self.size(0, 1))), value) for value in vectors]
        return self.add(nbcnn.Add(), *vectors) if len(vectors) > 1 else vectors[0]


def random_network(rng, **options):
    """A network of some ten layers of images, of shape IMAGES, and of OUTPUTS outputs."""
    draw = Draw(rng)
    for _ in range(draw.size(4, 10)):
        draw.step()
    draw.end()
    return nbcnn.Network(draw.entries, input_shape=IMAGES, **options)


def torch_outputs(model, images, parameters, training):
    """PyTorch's outputs of the same network, for a tensor of images and tensors of the parameters by name.

    In training the elements that are dropped are those that nbcnn drops in its next step.
    """
    import torch
    from torch.nn import functional

    def dropout(layer, x):
        if not training:
            return x
        cells, place = x.shape[1:2] if layer.planes else x.shape[1:], list(model.layers.values()).index(layer)
        mask = oracles.dropout_mask(len(x), cells, layer.p, model.seed, place, int(model.vector.steps[0]))
        return x * torch.from_numpy(mask).reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)) / (1 - layer.p)

    def batchnorm(layer, x, w=None, b=None):
        """In training the running statistics stay as they are."""
        kept = layer.track_running_stats and not training
        statistics = (layer.running_mean, layer.running_var) if kept else ()
        running = [torch.from_numpy(statistic.numpy()) for statistic in statistics] or [None, None]
        return functional.batch_norm(x, *running, w, b, not kept, 0, layer.eps)

    functions = {
        nbcnn.Conv2d: lambda layer, x, w, b: functional.conv2d(x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups),
        nbcnn.BatchNorm2d: batchnorm, nbcnn.BatchNorm1d: batchnorm,
        nbcnn.AdaptiveAvgPool2d: lambda layer, x: functional.adaptive_avg_pool2d(x, layer.output_size),
        nbcnn.Linear: lambda layer, x, w, b: functional.linear(x, w, b),
        nbcnn.MaxPool2d: lambda layer, x: functional.max_pool2d(
            x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode),
        nbcnn.AvgPool2d: lambda layer, x: functional.avg_pool2d(
            x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override),
        nbcnn.GlobalAvgPool2d: lambda layer, x: functional.adaptive_avg_pool2d(x, 1),
        nbcnn.ReLU: lambda layer, x: torch.relu(x),
        nbcnn.LeakyReLU: lambda layer, x: functional.leaky_relu(x, layer.negative_slope),
        nbcnn.Tanh: lambda layer, x: torch.tanh(x),
        nbcnn.Sigmoid: lambda layer, x: torch.sigmoid(x),
        nbcnn.GELU: lambda layer, x: functional.gelu(x, approximate=layer.approximate),
        nbcnn.Scale: lambda layer, x: layer.factor * x,
        nbcnn.Identity: lambda layer, x: x,
        nbcnn.Flatten: lambda layer, x: torch.flatten(x, 1),
        nbcnn.Add: lambda layer, *xs: sum(xs[1:], xs[0]),
        nbcnn.Concat: lambda layer, *xs: torch.cat(xs, 1),
        nbcnn.Dropout: dropout, nbcnn.Dropout2d: dropout,
    }
    values = {"input": images}
    for name, layer in model.layers.items():
        inputs = [values[value] for value in model.inputs[name]]
        if layer.parameters:
            inputs += [parameters.get(f"{name}.{key}") for key in ("weight", "bias")]
        values[name] = functions[type(layer)](layer, *inputs)
    return values[name]
