"""Layers computed in one go: which are, which are not and why; and a network gives the same either way."""
import numpy as np
import pytest
from own_layers import Softplus

import nbcnn
from nbcnn.kernels import conv2d_maxpool2d_forward


def conv(kernel_size=3, **options):
    return nbcnn.Conv2d(3, 4, kernel_size, **options)


def norm():
    return nbcnn.BatchNorm2d(3)


pool, relu, MAXIMA = nbcnn.MaxPool2d, nbcnn.ReLU, "a backward pass at the pools' maxima"


@pytest.mark.parametrize(("layers", "name", "reason"), [
    ([conv(), pool(2)], "conv2d0+maxpool2d1", MAXIMA),
    ([conv(), pool(2), relu()], "conv2d0+maxpool2d1+relu2", MAXIMA + " that a ReLU lets through"),
    ([conv(), relu(), pool(2)], "conv2d0+relu1+maxpool2d2", MAXIMA + " that a ReLU lets through"),
    # More than one ReLU or pooling is not taken in.
    ([conv(), relu(), pool(2), relu()], "conv2d0+relu1+maxpool2d2", MAXIMA + " that a ReLU lets through"),
    ([conv(), pool(2), pool(2)], "conv2d0+maxpool2d1", MAXIMA),
    # Of 7 x 6 pixels a row is left over, with ceil_mode too none where the windows fit.
    ([conv((5, 3), padding=1, bias=False), pool((2, 3), stride=(2, 3))], "conv2d0+maxpool2d1", MAXIMA),
    ([conv((4, 3)), pool((2, 3), ceil_mode=True)], "conv2d0+maxpool2d1", MAXIMA),
    ([conv()], "conv2d0", "no max-pooling follows"),
    ([conv(), relu()], "conv2d0", "no max-pooling follows"),
    ([conv(), relu(), relu(), pool(2)], "conv2d0", "no max-pooling follows"),
    ([conv(), nbcnn.Conv2d(4, 4, 1, stride=2), pool(2)], "conv2d0", "no max-pooling follows"),
    ([conv(stride=2), pool(2)], "conv2d0", "the convolution is strided or dilated"),
    ([conv(stride=(1, 2)), relu(), pool(2)], "conv2d0", "the convolution is strided or dilated"),
    ([conv(dilation=(2, 1)), pool(2)], "conv2d0", "the convolution is strided or dilated"),
    ([conv(), pool(3, stride=2)], "conv2d0", "maxpool2d1's windows do not lie side by side"),
    ([conv(), pool(2, stride=3)], "conv2d0", "maxpool2d1's windows do not lie side by side"),
    ([conv(), relu(), pool(2, dilation=(1, 2))], "conv2d0", "maxpool2d2's windows do not lie side by side"),
    ([conv(), pool(2, padding=1)], "conv2d0", "maxpool2d1's windows reach outside"),
    ([conv(), pool(2, ceil_mode=True)], "conv2d0", "maxpool2d1's windows reach outside"),
    ([conv((1, 24), padding=(0, 12)), pool((1, 2))], "conv2d0", "maxpool2d1's windows or the kernels are too wide"),
    ([nbcnn.MaxPool2d(2), relu()], "maxpool2d0", ""),
    ([norm(), relu(), pool(2)], "batchnorm2d0+relu1", "one pass forward, two backward, behind the statistics"),
    ([norm(), nbcnn.LeakyReLU(0.25)], "batchnorm2d0+leakyrelu1", "one pass forward, two backward, behind the statistics"),
    ([norm(), pool(2), relu()], "batchnorm2d0", "no activation follows"),
    ([norm()], "batchnorm2d0", "no activation follows"),
    ([norm(), Softplus()], "batchnorm2d0", "softplus1's kernels are not nbcnn's"),
])
def test_what_is_computed_in_one_go_and_why_not(layers, name, reason, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    names = [f"{type(layer).__name__.lower()}{k}" for k, layer in enumerate(layers)]
    model, fused = nbcnn.Sequential(list(zip(names, layers, strict=True)), input_shape=(3, 9, 8)), name.count("+")
    lines = str(nbcnn.BackpropScheduler(model, None)).splitlines()[2:]
    assert [line.split()[0] for line in lines] == [name, *names[1 + fused:]]
    assert lines[0].rstrip().endswith(f"  {'fused' if fused else 'plain'}: {reason}" if reason else "  0.00")
    # Asked not to, it computes each layer by itself.
    lines = str(nbcnn.BackpropScheduler(model, None, fuse=False)).splitlines()[2:]
    assert [line.split()[0] for line in lines] == names and not any(":" in line for line in lines)


@pytest.mark.parametrize(("kernel", "pool_size"), [((1, 1), (15, 17)), ((1, 1), (16, 16)), ((1, 1), (255, 1)), ((1, 1), (256, 1)),
                                                   ((1, 20), (1, 5)), ((1, 21), (1, 5)), ((1, 5), (1, 20)), ((1, 5), (1, 21))])
def test_layers_refuse_what_the_function_refuses(kernel, pool_size):
    H, W = (k + cells - 1 for k, cells in zip(kernel, pool_size, strict=True))
    layer, count, _ = nbcnn.Conv2d(1, 1, kernel).fuse([("pool", nbcnn.MaxPool2d(pool_size))], (1, H, W))
    assert (layer is not None) == (count == 1)
    x, w = np.zeros((0, 1, H, W), np.float32), np.zeros((1, 1, *kernel), np.float32)
    try:
        conv2d_maxpool2d_forward(x, w, pool_size=pool_size)
        assert layer is not None
    except ValueError as error:
        assert layer is None and "pool_size" in str(error)


def network(**options):
    """All that fuses, at the beginning, after one another and after plain layers, with paddings of several widths."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 5, 5, padding=2)), ("maxpool1", nbcnn.MaxPool2d(2)), ("relu1", nbcnn.ReLU()),
        ("conv2", nbcnn.Conv2d(5, 6, (7, 4), padding=(3, 2))), ("relu2", nbcnn.ReLU()), ("maxpool2", nbcnn.MaxPool2d((2, 3))),
        ("conv3", nbcnn.Conv2d(6, 7, 3, padding=1)), ("relu3", nbcnn.ReLU()),
        ("conv4", nbcnn.Conv2d(7, 4, (7, 4), padding=(4, 3), bias=False)), ("maxpool4", nbcnn.MaxPool2d((2, 3))),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(24, 5)),
    ], input_shape=(3, 16, 17), dtype=np.float64, **options)


FUSED = ["conv1+maxpool1+relu1", "conv2+relu2+maxpool2", "conv3", "relu3", "conv4+maxpool4", "flatten", "linear1"]


def test_a_network_gives_the_same_either_way():
    """Small integers all the way, so == holds; ties, zeros and all. Batches larger, smaller, and empty."""
    rng = np.random.default_rng(0)
    model = network()
    for p in model.parameters():
        p.data[...] = rng.integers(-1, 2, p.shape)
    fused, plain = (nbcnn.BackpropScheduler(model, nbcnn.MSELoss(reduction="sum"), fuse=fuse) for fuse in (True, False))
    for n in (9, 2, 17, 0, 5):
        images, targets = rng.integers(-1, 2, (n, 3, 16, 17)).astype(float), rng.integers(-9, 10, (n, 5)).astype(float)
        results = []
        for step in (fused, plain):
            for p in model.parameters():
                p.grad = None
            losses = []
            for _ in range(2):      # the second time gradients are added to
                losses.append(step.forward(images, targets))
                step.backward()
            results.append((losses, {name: p.grad.copy() for name, p in model.named_parameters()}))
        assert results[0][0] == results[1][0]
        for name, gradient in results[1][1].items():
            assert (results[0][1][name] == gradient).all() and (gradient.any() or not n), name
        assert [step.name for step in fused.steps] == FUSED
        # Of layers computed in one go there is the last one's output.
        assert list(fused.outputs) == [name.split("+")[-1] for name in FUSED]
        assert all((output == plain.outputs[name]).all() for name, output in fused.outputs.items())
        assert (fused.predict(images) == plain.predict(images)).all()


def test_training_gives_the_same_losses_either_way():
    """The sums are taken in different order: 1e-15 a step, which 40 steps of training multiply, stays below 1e-10."""
    losses = []
    for fuse in (True, False):
        model, rng = network(seed=3), np.random.default_rng(4)
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), fuse=fuse)
        optimizer = nbcnn.SGD(model.parameters(), lr=0.05, momentum=0.9)
        images, labels = rng.standard_normal((12, 3, 16, 17)), rng.integers(0, 5, 12)
        losses.append([step.train_step(images, labels, optimizer) for _ in range(40)])
    np.testing.assert_allclose(*losses, rtol=1e-10)
    assert losses[0][-1] < losses[0][0] / 2         # it learned something


@pytest.mark.parametrize(("fuse", "names"), [(True, FUSED), (False, list(network().layers))])
def test_first_nonfinite_names_what_was_computed_in_one_go(fuse, names):
    model, rng = network(), np.random.default_rng(0)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), fuse=fuse)
    images, labels = rng.standard_normal((3, 3, 16, 17)), rng.integers(0, 5, 3)
    step.forward(images, labels)
    assert step.first_nonfinite() is None and [step.name for step in step.steps] == names
    for parameter, layer in ((model.linear1.bias, "linear1"), (model.conv4.weight, "conv4"), (model.conv1.bias, "conv1")):
        parameter.data.flat[0] = np.nan
        step.forward(images, labels)
        assert step.first_nonfinite() == next(name for name in names if layer in name)
