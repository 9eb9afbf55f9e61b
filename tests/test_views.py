"""Views at test time: which there are, and that they count as they should."""
import numpy as np
import pytest

import nbcnn
from nbcnn.datasets import Dataset
from nbcnn.views import VIEWS, mean_of_views

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 5, 4), np.uint8)


def network(**options):
    """Every pixel counts differently in each of its three outputs."""
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(40, 3)], input_shape=(2, 5, 4), dtype=np.float64, seed=1, **options)


def seen(images, shift, mirrored):
    """A view, pixel by pixel: what is beside the image lies in a mirror on its first or last row or column."""
    view, (H, W) = np.empty_like(images), images.shape[2:]
    for i, j in np.ndindex(H, W):
        r, s = i - shift, (W - 1 - j if mirrored else j) - shift
        view[:, :, i, j] = images[:, :, H - 1 - abs(H - 1 - abs(r)), W - 1 - abs(W - 1 - abs(s))]
    return view


def logits(model, views):
    """By the definition, written out."""
    def both(shift):
        return model(seen(images, shift, False)) + model(seen(images, shift, True))
    images = IMAGES
    return {1: lambda: model(images), 2: lambda: both(0) / 2, 6: lambda: both(0) / 4 + both(-1) / 8 + both(1) / 8}[views]()


def test_weights():
    assert list(VIEWS) == [1, 2, 6]
    for count, views in VIEWS.items():
        assert len(views) == count and sum(weight for weight, *_ in views) == 1


@pytest.mark.parametrize("views", [1, 2, 6])
def test_mean_of_views(views):
    """Of bytes, and of floats: within 6 roundings of numbers of order 1."""
    model = network()
    assert np.allclose(mean_of_views(model, IMAGES, views), logits(model, views), rtol=0, atol=1e-14)
    assert np.allclose(mean_of_views(model.predict, IMAGES / 255, views), logits(model, views), rtol=0, atol=1e-14)
    assert len({tuple(seen(IMAGES, shift, mirrored).ravel()) for _, shift, mirrored in VIEWS[views]}) == views


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("views", [1, 2, 6])
def test_evaluate(views, batch_size):
    model, labels, rows = network(mean=[0.4, 0.5], std=[0.2, 0.3]), np.arange(7) % 3, np.arange(7)
    found = nbcnn.evaluate(model, Dataset(IMAGES, labels, ["a", "b", "c"], "noise"), batch_size=batch_size, views=views)
    expected, confusion = logits(model, views), np.zeros((3, 3), int)
    np.add.at(confusion, (labels, expected.argmax(1)), 1)
    assert found.confusion.tolist() == confusion.tolist()
    assert found.loss == pytest.approx(np.mean(np.log(np.exp(expected).sum(1)) - expected[rows, labels]), rel=1e-13)


def test_one_view_is_what_the_network_gives():
    """Every bit, and nothing more is computed."""
    calls = []

    def predict(images):
        calls.append(images)
        return np.array([[-0.0, np.nan]], np.float32)
    assert mean_of_views(predict, IMAGES, 1).tobytes() == predict(IMAGES).tobytes()
    assert len(calls) == 2 and calls[0] is IMAGES and mean_of_views(predict, IMAGES, 6).dtype == np.float32


@pytest.mark.torch
def test_as_in_pytorch():
    """The published recipe's own way: pad by reflection, crop, flip."""
    import torch
    model, x = network(), torch.tensor(IMAGES / 255)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")

    def both(images):
        return 0.5 * (model(images.numpy()) + model(images.flip(-1).numpy()))
    expected = 0.5 * both(x) + 0.25 * both(padded[..., 0:5, 0:4]) + 0.25 * both(padded[..., 2:7, 2:6])
    assert np.allclose(mean_of_views(model, IMAGES, 6), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("images, views, error, message", [
    (IMAGES, 3, ValueError, "^views: expected 1, 2 or 6, got 3$"),
    (IMAGES, 1.0, TypeError, "^views: expected 1, 2 or 6, got 1.0$"),
    (IMAGES[0], 2, ValueError, r"^images: expected shape \(N, C, H, W\), got shape \(2, 5, 4\)$"),
    (IMAGES[..., :1], 6, ValueError, "^views: expected 1 or 2 for images of 5 x 1 pixels, got 6$"),
    (None, 1, TypeError, "^images: expected a uint8, float32 or float64 array, got object"),
])
def test_errors(images, views, error, message):
    with pytest.raises(error, match=message):
        mean_of_views(network(), images, views)
