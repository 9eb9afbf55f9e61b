"""PyTorch's tensors on a GPU as arguments, strided ones included: read and written where they are, results shared."""
import numpy as np
import pytest

import nbcnn
from nbcnn import kernels

from arrays import integers

pytestmark = [pytest.mark.gpu, pytest.mark.torch]


@pytest.fixture
def device(cuda):
    """Where PyTorch's tensors are: on the GPU. The simulator knows none; there, on the CPU, only the tests are tried."""
    import torch
    if not torch.cuda.is_available() and cuda.unavailable() == "":
        pytest.skip("PyTorch sees no GPU")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tensors(device, *arrays):
    """Copies on the device."""
    import torch
    return [torch.from_numpy(a.copy()).to(device) for a in arrays]


def tensor(result, device):
    """A result as a tensor, which shares its memory."""
    import torch
    shared = torch.as_tensor(result, device=device)
    assert shared.device.type == device.type
    return shared


def test_strided_arguments(sizes, device):
    """Channels-last pictures, every second kernel of a larger bank, a bias between others, a gradient that repeats one number."""
    import torch
    x_shape, w_shape = sizes.convolutions["conv2"]
    x, w, b = integers(0, x_shape, (2 * w_shape[0], *w_shape[1:]), (w_shape[0], 3))
    x_there, w_there, b_there = tensors(device, x, w, b)
    x_there = x_there.contiguous(memory_format=torch.channels_last)
    w_there, w, b_there, b = w_there[::2], w[::2], b_there[:, 1], b[:, 1]
    y = tensor(kernels.conv2d_forward(x_there, w_there, b_there, padding=1), device)
    expected = kernels.conv2d_forward(x, w, b, padding=1)
    assert (y.cpu().numpy() == expected).all()
    dy = torch.full((1, 1, 1, 1), 2.0, device=device).expand(y.shape)
    got = kernels.conv2d_backward(dy, x_there, w_there, padding=1)
    for a, e in zip(got, kernels.conv2d_backward(np.full_like(expected, 2), x, w, padding=1), strict=True):
        assert (tensor(a, device).cpu().numpy() == e).all()
    assert (x_there.cpu().numpy() == x).all() and (w_there.cpu().numpy() == w).all()
    columns = x_there[:, :, :, ::2]         # views of views, and permuted ones
    assert (tensor(kernels.relu_forward(columns), device).cpu().numpy() == np.maximum(x[:, :, :, ::2], 0)).all()
    turned = x_there.permute(2, 0, 3, 1)
    assert (tensor(kernels.relu_forward(turned), device).cpu().numpy() == np.maximum(x.transpose(2, 0, 3, 1), 0)).all()


def test_losses(sizes, device):
    """Logits that are a slice of wider rows, labels that are a column."""
    logits, = integers(1, (sizes.batch, 12))
    labels = np.random.default_rng(2).integers(0, 10, (sizes.batch, 2))
    x, t = tensors(device, logits, labels)
    value = tensor(kernels.cross_entropy_forward(x[:, 1:11], t[:, 0]), device)
    assert value.shape == ()
    expected = kernels.cross_entropy_forward(np.float64(logits[:, 1:11]), labels[:, 0])
    assert abs(float(value) / expected - 1) < 2e-6      # some twenty roundings
    dx = tensor(kernels.mse_loss_backward(x[:, 1:11], x[:, :10], reduction="sum"), device).cpu().numpy()
    assert (dx == 2 * (logits[:, 1:11] - logits[:, :10])).all()


def test_written_where_they_are(sizes, device, pictures):
    """A parameter is updated and pictures are gathered into PyTorch's memory."""
    import torch
    param, grad = integers(3, (37,), (37,))
    p, g = tensors(device, param, grad)
    address = p.data_ptr()
    kernels.sgd_step(p if device.type == "cuda" else p.numpy(), g, lr=0.25)
    assert p.data_ptr() == address and (p.cpu().numpy() == param - grad / 4).all()
    drawn = pictures(sizes.batch).images
    table = kernels.normalization_table(None, None, drawn.shape[1], np.float32)
    index, flip = np.arange(sizes.batch)[::-1].copy(), np.arange(sizes.batch) % 2 == 0
    expected = np.empty(drawn.shape, np.float32)
    kernels.load_images(expected, drawn, index, flip, (1, 0), table)
    out = torch.full(drawn.shape, torch.nan, device=device).contiguous(memory_format=torch.channels_last)
    kernels.load_images(out if device.type == "cuda" else out.numpy(), *tensors(device, drawn, index, flip), (1, 0),
                        tensors(device, table)[0])
    assert (out.cpu().numpy() == expected).all()


def test_training_on_tensors(sizes, device, pictures):
    """A step on PyTorch's pictures and labels, and predictions that stay on the device."""
    drawn = pictures(sizes.batch)
    images, labels = drawn.images.astype(np.float32) / 255, drawn.labels
    losses, outputs = [], []
    for place in ("cpu", device.type):
        model = sizes.make().to(place)
        step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.01)
        x, t = (images, labels) if place == "cpu" else tensors(device, images, labels)
        losses.append([float(step.train_step(x, t, optimizer)) for _ in range(3)])
        result = model.predict(x)
        outputs.append(result if place == "cpu" else tensor(result, device).cpu().numpy())
    assert np.abs(np.divide(*losses) - 1).max() < 1e-5
    assert np.linalg.norm(outputs[1] - outputs[0]) <= 1e-4 * np.linalg.norm(outputs[0])


def test_mixing_is_refused(sizes, device):
    if device.type == "cpu":
        pytest.skip("needs two kinds of memory")
    x, w = integers(4, *sizes.linears["linear2"])
    there, = tensors(device, x)
    with pytest.raises(TypeError, match=r"^w: expected device arrays, as x is one"):
        kernels.linear_forward(there, w)
