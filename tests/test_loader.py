"""Batches: every image once, and the same ones for a seed and an epoch, wherever one begins."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.datasets import Dataset, Loader, class_weights
from nbcnn.kernels.cpu.buffer import Buffer

import oracles

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def numbered(count, size=6):
    """A data set of random images, each of which tells its number."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
    return Dataset(images, np.arange(count), [str(k) for k in range(count)], "numbered")


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    return all(np.array_equal(x, u) and np.array_equal(t, v) for (x, t), (u, v) in pairs)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), shuffle=st.booleans(), augment=st.booleans(),
       seed=st.integers(0, 2**64), epoch=st.integers(0, 100), start=st.floats(0, 1), dtype=st.sampled_from(["f4", "f8"]),
       how=st.fixed_dictionaries({}, optional=dict(
           flip=st.sampled_from([0.3, "alternate"]), shift=st.integers(0, 5), shift_per=st.sampled_from(["batch", "image"]),
           border=st.sampled_from(["zero", "reflect"]), cutout=st.integers(0, 6))))
def test_epoch(count, batch_size, shuffle, augment, seed, epoch, start, dtype, how):
    dataset = numbered(count)
    options = dict(shuffle=shuffle, seed=seed, augment=augment, mean=MEAN, std=STD, dtype=dtype, **how)
    loader = Loader(dataset, batch_size, **options)
    batches = list(loader.epoch(epoch))
    sizes = [len(labels) for _, labels in batches]
    assert len(loader) == len(batches) == -(-count // batch_size)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1) and 1 <= sizes[-1] <= batch_size
    assert all(images.dtype == dtype and labels.dtype == np.int64 for images, labels in batches)

    order, flips, shifts, corners = loader.order(epoch), loader.flips(epoch), loader.shifts(epoch), loader.corners(epoch)
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), order)
    assert sorted(order) == list(range(count))
    assert shuffle or np.array_equal(order, np.arange(count))
    assert augment or not (flips.any() or shifts.any() or corners.any())
    assert len(shifts) == (count if how.get("shift_per") == "image" else len(batches))
    for k, (images, labels) in enumerate(batches):
        shift = shifts[labels] if how.get("shift_per") == "image" else shifts[k]
        assert np.array_equal(images, oracles.load_images(
            dataset.images, labels, flips[labels], shift, loader.table, how.get("border", "zero"),
            how.get("cutout", 0) if augment else 0, corners[labels]))

    first = round(start * len(loader))
    assert same(loader.epoch(epoch, start=first), batches[first:])
    assert same(Loader(dataset, batch_size, **options).epoch(epoch), batches)


def test_plain_batches_are_the_images():
    dataset = numbered(5)
    (images, labels), = Loader(dataset, 8, shuffle=False).epoch(3)
    assert np.array_equal(images, (dataset.images / 255).astype(np.float32))
    assert np.array_equal(labels, dataset.labels) and not np.shares_memory(labels, dataset.labels)


def test_writes_into_the_arrays_it_is_given():
    dataset, buffer, asked = numbered(10), Buffer(4, (3, 6, 6), np.float32), []

    def into(n):
        asked.append(buffer.view(n))
        return asked[-1]

    loader = Loader(dataset, 4, augment=True, mean=MEAN, std=STD)
    for (images, labels), (expected, expected_labels) in zip(loader.epoch(1, into), loader.epoch(1), strict=True):
        assert images is asked[-1]
        assert np.array_equal(images, expected) and np.array_equal(labels, expected_labels)
    assert [len(view) for view in asked] == [4, 4, 2]
    assert not buffer.array[buffer.zeros:].any()


def test_skipped_batches_are_not_made():
    made = []
    loader = Loader(numbered(10), 2)
    list(loader.epoch(0, lambda n: made.append(n) or np.empty((n, 3, 6, 6), np.float32), start=4))
    assert made == [2]


@pytest.mark.parametrize("options", [{}, dict(flip="alternate", shift_per="image", cutout=3)])
def test_seeds_and_epochs_differ(options):
    loader, other = (Loader(numbered(200), 10, seed=seed, augment=True, **options) for seed in (0, 1))
    for draw in (Loader.order, Loader.flips, Loader.shifts, *[Loader.corners] * bool(options)):
        drawn = [draw(loader, 0), draw(loader, 1), draw(other, 0), draw(other, 1)]
        assert not any(np.array_equal(drawn[a], drawn[b]) for a in range(4) for b in range(a))
    assert len({loader._generator(0, purpose).random() for purpose in range(5)}) == 5


def test_order_and_flips_do_not_depend_on_other_options():
    loader = Loader(numbered(50), 10, seed=3, augment=True)
    other = Loader(numbered(50), 7, seed=3, augment=True, shuffle=False, shift=5)
    plain = Loader(numbered(50), 7, seed=3)
    assert np.array_equal(loader.flips(2), other.flips(2))
    assert np.array_equal(loader.order(2), plain.order(2))


def test_what_an_image_has_of_its_own_depends_on_seed_and_epoch_alone():
    """Not on order or batch size; and with the options of before the numbers are those of before."""
    options = dict(seed=3, augment=True, flip="alternate", shift_per="image", cutout=3)
    loader, other = Loader(numbered(50), 10, **options), Loader(numbered(50), 7, shuffle=False, border="reflect", **options)
    for draw in (Loader.flips, Loader.shifts, Loader.corners):
        assert np.array_equal(draw(loader, 2), draw(other, 2)) and len(draw(loader, 2)) == 50
    default = Loader(numbered(50), 10, seed=3, augment=True)
    rng = [np.random.default_rng([3, 2, purpose]) for purpose in range(3)]
    assert np.array_equal(default.order(2), rng[0].permutation(50))
    assert np.array_equal(default.flips(2), rng[1].random(50) < 0.5)
    assert np.array_equal(default.shifts(2), rng[2].integers(-2, 3, (5, 2)))


def test_flips_that_alternate():
    """About half of the images in epoch 0, within 4 standard deviations, the others in epoch 1, and again."""
    loader = Loader(numbered(10_000, size=3), 64, augment=True, flip="alternate")
    flips = [loader.flips(epoch) for epoch in range(4)]
    assert abs(flips[0].mean() - 0.5) < 4 * 0.5 / 100
    assert (flips[0] != flips[1]).all() and (flips[0] == flips[2]).all() and (flips[1] == flips[3]).all()
    assert not Loader(numbered(9), 4, flip="alternate").flips(0).any()


@pytest.mark.parametrize("size", [3, 4])
def test_where_a_cutout_lies(size):
    """Over 10,000 images each of 6 x 6 pixels is as often its centre, within 5 standard deviations; some of it may lie outside."""
    corners = Loader(numbered(10_000), 64, augment=True, cutout=size).corners(0)
    places, counts = np.unique(corners, axis=0, return_counts=True)
    assert places.tolist() == [[r - size // 2, s - size // 2] for r in range(6) for s in range(6)]
    assert (abs(counts - 10_000 / 36) < 5 * (10_000 / 36) ** 0.5).all()


def test_how_often_and_how_far():
    """Over 10,000 images and 10,000 batches: half are flipped, within 4 standard deviations; each shift comes up."""
    loader = Loader(numbered(10_000, size=3), 1, augment=True)
    flips, shifts = loader.flips(0), loader.shifts(0)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / 100
    counts = np.unique(shifts, axis=0, return_counts=True)
    assert counts[0].tolist() == [[dy, dx] for dy in range(-2, 3) for dx in range(-2, 3)]
    assert (abs(counts[1] - 400) < 4 * 20).all()
    assert np.array_equal(Loader(numbered(10_000, size=3), 64, augment=True, shift_per="image").shifts(0), shifts)
    always = Loader(numbered(9), 4, augment=True, flip=1.0, shift=0)
    assert always.flips(0).all() and not always.shifts(0).any()
    assert not Loader(numbered(9), 4, augment=True, flip=0).flips(0).any()


@pytest.mark.parametrize("options, error, message", [
    (dict(batch_size=0), ValueError, "batch_size: expected an int >= 1"),
    (dict(batch_size=2.0), TypeError, "batch_size: expected an int >= 1"),
    (dict(seed=-1), ValueError, "seed: expected an int >= 0"),
    (dict(flip=1.5), ValueError, "flip: expected a number in .0, 1. or 'alternate', got 1.5"),
    (dict(flip="x"), TypeError, "flip: expected a number in .0, 1. or 'alternate', got 'x'"),
    (dict(shuffle=np.zeros(2)), TypeError, "shuffle: expected True or False"),
    (dict(dataset=3), TypeError, r"dataset: expected a nbcnn.datasets.Dataset\(images, labels, classes, name\), got int"),
    (dict(shift=-1), ValueError, "shift: expected an int >= 0"),
    (dict(shift=7, augment=True), ValueError, "shift: expected at most 6 for images of 6 x 6 pixels, got 7"),
    (dict(shift=6, border="reflect", augment=True), ValueError, "shift: expected at most 5 for images of 6 x 6 pixels, got 6"),
    (dict(shift_per="step"), ValueError, "shift_per: expected one of 'batch', 'image', got 'step'"),
    (dict(border=0), ValueError, "border: expected one of 'zero', 'reflect', got 0"),
    (dict(cutout=-1), ValueError, "cutout: expected an int >= 0, got -1"),
    (dict(cutout=7, augment=True), ValueError, "cutout: expected at most 6 for images of 6 x 6 pixels, got 7"),
    (dict(mean=(0.5,)), ValueError, "mean: expected 3 finite numbers"),
    (dict(dtype=np.float16), TypeError, "dtype: expected float32 or float64"),
])
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        Loader(**{"dataset": numbered(4), "batch_size": 2, **options})


@pytest.mark.parametrize("arguments, error, message", [
    (dict(epoch=-1), ValueError, "epoch: expected an int >= 0"),
    (dict(epoch=0, into=3), TypeError, "into: expected a function, got 3"),
    (dict(epoch=0, start=3), ValueError, "start: expected at most 2, the number of batches, got 3"),
])
def test_epoch_errors_come_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        Loader(numbered(4), 2).epoch(**arguments)


@pytest.mark.parametrize("images, labels, error, message", [
    (np.zeros((2, 3, 4, 4)), [0, 1], TypeError, "images: expected a uint8 array, got dtype float64"),
    (np.zeros((2, 3, 4), np.uint8), [0, 1], ValueError, r"images: expected shape \(M, C, H, W\)"),
    (np.zeros((2, 3, 4, 4), np.uint8), [0.0, 1.0], TypeError, "labels: expected an integer array"),
    (np.zeros((2, 3, 4, 4), np.uint8), [0], ValueError, r"labels: expected shape \(2,\)"),
    (np.zeros((2, 3, 4, 4), np.uint8), [0, 2], ValueError, r"got 2 at position 1"),
    (np.zeros((2, 3, 4, 4), np.uint8), [-1, 0], ValueError, r"got -1 at position 0"),
])
def test_dataset_errors(images, labels, error, message):
    with pytest.raises(error, match=message):
        Dataset(images, labels, ["cat", "dog"], "pets")


def test_names_of_classes_and_data_sets_are_strings():
    for classes, name, message in ((3, "n", "classes: expected a sequence of str, got 3"),
                                   (["a"], 3, "name: expected a str, got int"),
                                   ([1], "n", "classes: expected a sequence of str, got int")):
        with pytest.raises(TypeError, match=f"^{message}$"):
            Dataset(np.zeros((1, 3, 4, 4), np.uint8), [0], classes, name)


def test_class_weights():
    """M / (C * count): 12 images, 3 classes of 1, 3 and 8. With them each class has the same sum of weights, 4."""
    labels = np.array([1, 2, 2, 1, 2, 2, 2, 0, 2, 2, 1, 2])
    weights = class_weights(Dataset(np.zeros((12, 1, 1, 1), np.uint8), labels, ["a", "b", "c"], "n"))
    assert weights.tolist() == [4, 4 / 3, 0.5] and weights.dtype == np.float64 and weights[labels].mean() == pytest.approx(1)


def test_a_class_without_images_has_no_weight():
    for labels, missing in (([1, 1], "cat"), ([0, 0], "dog"), ([], "cat")):
        data = Dataset(np.zeros((len(labels), 3, 4, 4), np.uint8), np.array(labels, int), ["cat", "dog"], "pets")
        with pytest.raises(ValueError, match=f"^dataset: expected an image of each class, got none of {missing}$"):
            class_weights(data)
    with pytest.raises(TypeError, match=r"^dataset: expected a nbcnn\.datasets\.Dataset, got list$"):
        class_weights([0, 1])


def test_as_pytorchs_loader():
    """drop_last leaves out what is less than a batch; num_workers is taken, and changes nothing."""
    loader = Loader(numbered(10), 4, shuffle=False, drop_last=True, num_workers=2)
    assert [labels.tolist() for _, labels in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(loader) == 2
    assert len(Loader(numbered(8), 4, drop_last=True)) == len(Loader(numbered(8), 4)) == 2


def test_a_data_set_of_ones_own_is_told_what_it_lacks():
    class Own(Dataset):
        def __init__(self):
            pass
    with pytest.raises(TypeError, match=r"^dataset: expected images and labels, got none; Own is to call super\(\).__init__\("):
        Loader(Own(), 4)
