"""All losses over the full grid of their options beside PyTorch: equal in float64, no less exact in float32."""
import itertools

import numpy as np
import pytest

import nbcnn.losses

REDUCTIONS = ["none", "mean", "sum"]


def elementwise_grid(rng):
    """Targets are floats or whole numbers."""
    for reduction, shape, whole in itertools.product(REDUCTIONS, [(), (9,), (64, 10), (3, 4, 5, 2), (0, 3)], [False, True]):
        x, t = (np.asarray(rng.normal(size=shape) * 3, np.float32) for _ in "xt")
        yield x, t.astype(np.int64) if whole else t, {"reduction": reduction}


def binary_grid(rng, logits):
    """Weights are absent, full or broadcast; targets are 0 and 1, or anything between; x reaches far, or not."""
    for reduction, shape, *kinds, far, hard in itertools.product(
            REDUCTIONS, [(9,), (64, 10), (3, 4, 5, 2), (0, 3)], *[["none", "full", "broadcast"]] * (1 + logits),
            [False, True], [False, True]):
        x = rng.normal(size=shape) if logits else rng.uniform(0.01, 0.99, shape)
        if far:
            x = x * 30 if logits else np.where(rng.random(shape) < 0.1, np.round(x), x)
        t = rng.uniform(size=shape)
        options = {"reduction": reduction}
        for name, kind in zip(["weight", "pos_weight"], kinds, strict=False):
            if kind != "none":
                options[name] = rng.uniform(0.1, 3, shape if kind == "full" else shape[-1:]).astype(np.float32)
        yield x.astype(np.float32), (np.round(t) if hard else t).astype(np.float32), options


def cross_entropy_grid(rng):
    """Every rank with class indices, some of them ignored, and with class probabilities."""
    shapes = [(7,), (1, 1), (6, 7), (64, 10), (4, 5, 3), (3, 4, 2, 3), (2, 3, 2, 1, 2), (4, 2000), (0, 3)]
    for reduction, shape, weighted, smoothing, scale in itertools.product(REDUCTIONS, shapes, [False, True],
                                                                          [0.0, 0.1, 1.0], [0.1, 1, 20]):
        axis = min(1, len(shape) - 1)
        C, positions = shape[axis], shape[:axis] + shape[axis + 1:]
        x = (rng.normal(size=shape) * scale).astype(np.float32)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        if weighted:
            options["weight"] = rng.uniform(0.1, 2, C).astype(np.float32)
        for ignore_index in (-100, 0, C - 1):
            t = rng.integers(0, C, positions)
            yield x, np.where(rng.random(positions) < 0.3, ignore_index, t), options | {"ignore_index": ignore_index}
        q = rng.dirichlet(np.ones(C), positions).astype(np.float32)
        yield x, np.moveaxis(q, -1, axis), options


GRIDS = {"L1Loss": elementwise_grid, "MSELoss": elementwise_grid, "CrossEntropyLoss": cross_entropy_grid,
         "BCELoss": lambda rng: binary_grid(rng, False), "BCEWithLogitsLoss": lambda rng: binary_grid(rng, True)}


def cast(value, dtype):
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def run(name, x, t, options, dloss, dtype):
    """Loss and dx of nbcnn, then of PyTorch, in the given dtype."""
    import torch
    x, t, dloss = (cast(a, dtype) for a in (x, t, dloss))
    options = {key: cast(value, dtype) for key, value in options.items()}
    loss = getattr(nbcnn.losses, name)(**options)
    ours = loss(x, t), loss.backward(x, t, dloss)
    tensor = torch.tensor(x, requires_grad=True)
    target = torch.tensor(t if name == "CrossEntropyLoss" else np.asarray(t, dtype))
    options = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in options.items()}
    theirs = getattr(torch.nn, name)(**options)(tensor, target)
    theirs.backward(torch.tensor(dloss))
    dx = tensor.grad.numpy()
    if name == "BCELoss" and dtype == np.float64:   # PyTorch writes the 1e-12 of its gradient as a float32
        dx = np.where((x == 0) | (x == 1), dx * (float(np.float32(1e-12)) / 1e-12), dx)
    return ours, (theirs.detach().numpy(), dx)


@pytest.mark.torch
@pytest.mark.parametrize("ignore_index", [-1, 0, 1])
def test_no_index_is_ignored_among_probabilities(ignore_index):
    """A number below 0 is no class, and changes nothing; PyTorch refuses the others too."""
    x, t = np.array([[0.5, -1, 2], [3, 0, 1]]), np.array([[0.25, 0.5, 0.25], [0, 1, 0]])
    if ignore_index < 0:
        ours, theirs = run("CrossEntropyLoss", x, t, {"ignore_index": ignore_index}, np.float64(1), np.float64)
        assert all(map(np.allclose, ours, theirs)) and ours[0] == nbcnn.losses.CrossEntropyLoss()(x, t)
        return
    import torch
    with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point target"):
        torch.nn.CrossEntropyLoss(ignore_index=ignore_index)(*map(torch.tensor, (x, t)))
    loss = nbcnn.losses.CrossEntropyLoss(ignore_index=ignore_index)
    for function in (loss, loss.backward):
        with pytest.raises(ValueError, match=r"^ignore_index: expected a negative number with class probabilities"):
            function(x, t)


@pytest.fixture
def one_thread():
    """On a busy machine the waiting of PyTorch's threads for each other takes longer than the test."""
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.torch
@pytest.mark.parametrize("name", GRIDS)
def test_parity_over_the_grid(name, one_thread):
    rng, eps = np.random.default_rng(0), np.finfo(np.float32).eps
    worst = {}
    for x, t, options in GRIDS[name](rng):
        reduction = options["reduction"]
        shape = np.shape(getattr(nbcnn.losses, name)(**options)(x, t))
        dloss = np.asarray(rng.normal(size=shape), np.float32)
        exact, reference = run(name, x, t, options, dloss, np.float64)
        got, theirs = run(name, x, t, options, dloss, np.float32)
        # A loss is made of numbers of size x that may cancel, a gradient of numbers of size dloss over the mean's divisor.
        scales = np.abs(x).max(initial=0), np.abs(dloss).max(initial=0) / (t.size if reduction == "mean" and t.size else 1)
        for what, scale, *values in zip(("loss", "dx"), scales, exact, reference, got, theirs, strict=True):
            double, reference_value, single, single_torch = map(np.asarray, values)
            assert double.dtype == np.float64 and single.dtype == np.float32
            assert double.shape == single.shape == reference_value.shape
            nan = np.isnan(reference_value)
            assert (np.isnan(double) == nan).all() and (np.isnan(single) == nan).all(), f"{what} of {x.shape} {options}"
            scale = max(scale, np.abs(reference_value[~nan]).max(initial=0)) or 1
            errors = [np.abs(value - reference_value)[~nan].max(initial=0) / scale for value in (double, single, single_torch)]
            # PyTorch adds up a row of n numbers in as few as four lanes: n/4 roundings each.
            assert errors[0] < max(1e-14, max(x.shape, default=1) / 4 * np.finfo(np.float64).eps), f"{what} of {x.shape} {options}"
            worst[what, reduction] = np.maximum(worst.get((what, reduction), 0), errors[1:])
    for key, (error, error_torch) in worst.items():
        assert error <= 2 * error_torch + 2 * eps, f"{key}: {error / eps:.2f} eps, PyTorch {error_torch / eps:.2f} eps"
