"""The training loop: against one written out by hand, resumed anywhere, and stopped by a loss that is not finite."""
import math
import sys
import types

import numba
import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint, optim
from nbcnn.datasets import Dataset, Loader
from nbcnn.evaluation import measure
from nbcnn.fit import NonFiniteLoss, fit
from nbcnn.optim import SGD
from nbcnn.progress import Progress
from nbcnn.scheduler import BackpropScheduler


def images(count=22, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(rng.integers(0, 256, (count, 2, 6, 6), dtype=np.uint8), rng.integers(0, 3, count), ["a", "b", "c"], "noise")


def small_model(seed=0, dtype=np.float32):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(2, 4, 3, padding=1)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
                             ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(36, 3))],
                            input_shape=(2, 6, 6), mean=[0.4, 0.5], std=[0.3, 0.2], classes=["a", "b", "c"], seed=seed, dtype=dtype)


@pytest.fixture(autouse=True)
def one_thread():
    """Faster for so little work."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


TRAIN, TEST = images(), images(7, seed=1)       # batches of 5: 5, 5, 5, 5, 2
LOSSES = {"cross_entropy": nbcnn.CrossEntropyLoss(label_smoothing=0.1), "mse": nbcnn.MSELoss(), "l1": nbcnn.L1Loss(),
          "bce": nbcnn.BCEWithLogitsLoss()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loop_is_the_one_written_by_hand(name, dtype):
    loss, one_hot = LOSSES[name], np.eye(3, dtype=dtype)
    model, ours = small_model(dtype=dtype), small_model(dtype=dtype)
    step, optimizer = BackpropScheduler(model, loss), SGD(model.parameters(), lr=0.1, momentum=0.5)
    loader = Loader(TRAIN, 5, seed=3, augment=True, mean=model.mean, std=model.std, dtype=dtype)
    means = []
    for epoch in range(2):
        total = 0.0
        for images, labels in loader.epoch(epoch):
            targets = labels if name == "cross_entropy" else one_hot[labels]
            value = step.forward(images, targets)
            optimizer.zero_grad()
            step.backward()
            optimizer.step()
            total += value * len(labels)
        means.append(total / 22)
    state = fit(ours, TRAIN, TEST, epochs=2, batch_size=5, loss=loss, optimizer=SGD(ours.parameters(), lr=0.1, momentum=0.5),
                augment=True, seed=3)
    assert (ours.vector.data == model.vector.data).all()
    assert [row["train_loss"] for row in state.history] == means
    logits = ours.predict(TEST.images)
    targets = TEST.labels if name == "cross_entropy" else one_hot[TEST.labels]
    eps = float(np.finfo(dtype).eps)
    assert state.history[-1]["test_loss"] == pytest.approx(float(loss(logits, targets)), rel=8 * eps)      # a sum of 21 terms
    assert state.history[-1]["test_accuracy"] == (logits.argmax(1) == TEST.labels).mean()


def run_to(path, stop=None, source=None, **changes):
    """Train three epochs of five batches, from the beginning or from a checkpoint; save where it stops."""
    start = checkpoint.load(source) if source else None
    model = start.model if start else small_model()
    optimizer = start.optimizer if start else SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    counted = [0]

    def on_step(state):
        counted[0] += 1
        state.stop = counted[0] == stop
    state = fit(model, TRAIN, TEST, epochs=3, batch_size=5, optimizer=optimizer, schedule=optim.one_cycle(0.1, 15), augment=True,
                seed=7, progress=start and start.progress, on_step=on_step, **changes)
    checkpoint.save(path, model, optimizer=optimizer, progress=state.progress, options={"seed": 7})
    return state


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 10, 14, 15])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(tmp_path, stop):
    whole = run_to(tmp_path / "whole")
    first = run_to(tmp_path / "first", stop)
    assert (first.progress.epoch, first.progress.step) == divmod(stop, 5) if stop % 5 else first.progress.step == 5
    second = run_to(tmp_path / "second", source=tmp_path / "first")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "whole").read_bytes()
    rows = [{name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            for row in first.history + second.history]
    assert rows == [{name: row[name] for name in rows[0]} for row in whole.history]
    assert second.progress == whole.progress != first.progress


def test_a_run_goes_on_from_every_epoch(tmp_path):
    def on_epoch(state):
        checkpoint.save(tmp_path / str(state.progress.epoch), state.model, optimizer=state.optimizer, progress=state.progress,
                        options={"seed": 7})
    run_to(tmp_path / "whole", on_epoch=on_epoch)
    for epoch in (1, 2, 3):
        run_to(tmp_path / "resumed", source=tmp_path / str(epoch))
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_evaluation_changes_nothing():
    one, other = small_model(), small_model()
    fit(one, TRAIN, TEST, epochs=2, batch_size=5)
    state = fit(other, TRAIN, epochs=2, batch_size=5)
    assert (one.vector.data == other.vector.data).all()
    assert state.history[-1]["test_loss"] is None and state.progress.best_accuracy is None


def test_data_and_optimizers_that_do_not_fit():
    other = Dataset(TEST.images, TEST.labels, [f"x{k}" for k in range(len(TEST.classes))], "other")
    model = small_model()
    model.classes = None
    with pytest.raises(ValueError, match="test: expected the classes of train, "):
        fit(model, TRAIN, other)
    model.classes = other.classes
    with pytest.raises(ValueError, match="train: expected the network's classes, x0, "):
        fit(model, TRAIN)
    with pytest.raises(TypeError, match=r"train: expected a nbcnn.datasets.Dataset, got ndarray"):
        fit(small_model(), TRAIN.images, TRAIN.labels)
    with pytest.raises(ValueError, match="optimizer: expected one with parameters of the model, got one with none of them"):
        fit(small_model(), TRAIN, optimizer=nbcnn.SGD(small_model().parameters(), lr=0.1))


@pytest.mark.parametrize("name, value, expected", [
    ("model", 3, "a nbcnn.Sequential, got int"), ("train", 3, "a nbcnn.datasets.Dataset, got int"),
    ("test", 3, "a nbcnn.datasets.Dataset, got int"), ("loss", 3, "a loss of nbcnn.losses, got int"),
    ("loss", 0, "a loss of nbcnn.losses, got int"), ("optimizer", 3, r"an optimizer, as nbcnn.SGD\(...\), got int"),
    ("optimizer", {}, "an optimizer, .* got dict"), ("schedule", 3, "a function, got 3"), ("on_step", 3, "a function, got 3"),
    ("on_epoch", "x", "a function, got 'x'"), ("progress", 3, "a Progress, got int"), ("seed", 1.5, "an int >= 0, got 1.5"),
    ("shuffle", np.zeros(2), r"True or False, got array\(\[0., 0.\]\)"), ("profile", np.zeros(2), "True or False, got array"),
    ("schedule", lambda k: "fast", "a finite number >= 0, got 'fast'"),
])
def test_arguments_of_the_wrong_kind(name, value, expected):
    with pytest.raises(TypeError, match=f"^{name}: expected {expected}"):
        fit(**{"model": small_model(), "train": TRAIN, name: value})


def test_a_schedule_that_is_no_rate():
    with pytest.raises(ValueError, match=r"^schedule: expected a finite number >= 0, got nan"):
        fit(small_model(), TRAIN, schedule=lambda k: math.nan)


@pytest.mark.parametrize("options, error, message", [
    (dict(loss_sum="x"), TypeError, "loss_sum: expected a finite number, got 'x'"),
    (dict(loss_sum=math.inf), ValueError, "loss_sum: expected a finite number, got inf"),
    (dict(epoch=2**63), ValueError, "epoch: expected an int <= 2147483647, got 9223372036854775808"),
    (dict(best_accuracy=[1]), TypeError, r"best_accuracy: expected a number in \[0, 1\], got \[1\]"),
])
def test_progress_that_makes_no_sense(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Progress(**options)


def test_evaluate_at_any_batch_size():
    scheduler = BackpropScheduler(small_model(), nbcnn.CrossEntropyLoss())
    first, *others = (measure(scheduler, TRAIN, size) for size in (1, 5, 22, 100))
    for other in others:
        assert (other.confusion == first.confusion).all() and other.loss == pytest.approx(first.loss, rel=1e-6)


def test_callbacks_see_the_run_and_may_end_it():
    steps, epochs = [], []

    def on_step(state):
        steps.append((state.progress.epoch, state.progress.step, state.optimizer.lr))
        assert math.isfinite(state.loss) and (state.epochs, state.batches) == (4, 5)

    def on_epoch(state):
        epochs.append(state.history[-1]["epoch"])
        state.stop = len(epochs) == 2
    state = fit(small_model(), TRAIN, TEST, epochs=4, batch_size=5, schedule=lambda k: 0.5 ** k, on_step=on_step, on_epoch=on_epoch)
    assert steps == [(k // 5, k % 5 + 1, 0.5 ** k) for k in range(10)] and epochs == [1, 2]
    assert (state.progress.epoch, state.progress.step) == (2, 0)
    assert [row["lr"] for row in state.history] == [0.5 ** 4, 0.5 ** 9]
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in state.history)


def test_the_best_epoch_is_the_first_with_the_best_accuracy():
    accuracies = []
    state = fit(small_model(), TRAIN, TRAIN, epochs=12, batch_size=5, on_epoch=lambda s: accuracies.append(
        (s.history[-1]["test_accuracy"], s.progress.best_accuracy, s.progress.best_epoch)))
    for k, (_, best, epoch) in enumerate(accuracies):
        measured = [accuracy for accuracy, _, _ in accuracies[:k + 1]]
        assert (best, epoch) == (max(measured), measured.index(max(measured)) + 1)
    assert len({accuracy for accuracy, _, _ in accuracies}) > 1 and state.progress.epoch == 12


def test_the_best_epoch_is_chosen_with_validation_images_where_there_are_some():
    """Without them the same training is the same, but for the choice; TEST and these differ in what they find best."""
    val, states = images(40, seed=2), []
    for more in ({}, {"val": val}):
        model = small_model()
        states.append(fit(model, TRAIN, TEST, epochs=12, batch_size=5, verbose=0, **more))
        states[-1].model.vector.data = states[-1].model.vector.data.copy()
    without, state = states
    assert (without.model.vector.data == state.model.vector.data).all() and "val_loss" not in without.history[0]
    assert [row["test_loss"] for row in without.history] == [row["test_loss"] for row in state.history]
    accuracies = [row["val_accuracy"] for row in state.history]
    assert state.progress.best_epoch == accuracies.index(max(accuracies)) + 1 != without.progress.best_epoch
    assert state.progress.best_accuracy == max(accuracies)
    last = nbcnn.evaluate(state.model, val, batch_size=64)
    assert (state.history[-1]["val_loss"], accuracies[-1]) == (last.loss, last.accuracy)


def test_the_default_is_the_commands_default_recipe():
    """The same bits as with all of it said; the rate of an optimizer given stays as it is."""
    one, other = small_model(), small_model()
    fit(one, TRAIN, epochs=3, batch_size=5, verbose=0)
    optimizer = SGD(other.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    fit(other, TRAIN, epochs=3, batch_size=5, verbose=0, optimizer=optimizer, schedule=optim.one_cycle(0.02, 15), augment=True)
    assert (one.vector.data == other.vector.data).all()
    state = fit(other, TRAIN, epochs=2, batch_size=5, verbose=0, optimizer=SGD(other.parameters(), lr=0.25))
    assert [row["lr"] for row in state.history] == [0.25, 0.25]
    digits = Dataset(TRAIN.images, TRAIN.labels, TRAIN.classes, "mnist")
    for model, options in ((one, {}), (other, {"augment": False})):
        model.load_state_dict(small_model().state_dict())
        fit(model, digits, epochs=1, batch_size=5, verbose=0, **options)
    assert (one.vector.data == other.vector.data).all()
    tiny = Dataset(np.zeros((8, 1, 1, 3), np.uint8), np.zeros(8, int), ["a"], "one pixel high")      # shifted by at most that
    fit(nbcnn.Sequential(nbcnn.Flatten(), nbcnn.Linear(3, 1)), tiny, epochs=1, verbose=0)


def test_four_epochs_learn_the_shapes():
    train, test = nbcnn.datasets.shapes()
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    state = fit(nbcnn.models.cifar10_quick(), train, test, epochs=4, verbose=0)
    assert state.history[-1]["test_accuracy"] > 0.9     # 96.45 % when this was written; guessing gives 10 %


def test_what_is_said(capsys):
    state = fit(small_model(), TRAIN, TEST, epochs=2, batch_size=5, val=TEST)
    out, err = capsys.readouterr()
    row = state.history[1]
    assert len(out.splitlines()) == 2 and err == "" and out.splitlines()[1].startswith("epoch 2/2  ")
    for name in ("train_loss", "test_loss", "val_loss"):
        assert f"{row[name]:.4f}" in out
    assert f"{row['test_accuracy']:.2%}" in out and f"{row['lr']:.2e}" in out
    fit(small_model(), TRAIN, TEST, epochs=2, batch_size=5, verbose=0)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match=r"^verbose: expected"):
        fit(small_model(), TRAIN, verbose=2)


def test_the_bar_is_tqdms_of_notebooks_in_a_notebook(monkeypatch):
    """A bar of the images of each epoch; it says the mean loss so far."""
    said = []

    class Bar:
        disable, n = False, 0

        def __init__(self, **options):
            said.append((options["desc"], options["total"], options["disable"]))

        def set_postfix_str(self, text, refresh):
            said.append(text)

        def update(self, count):
            self.n += count

        def close(self):
            said.append(self.n)
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    state = fit(small_model(), TRAIN, epochs=1, batch_size=11)
    assert said[0] == ("epoch 1/1", 22, False) and said[-1] == 22
    assert said[2] == f"loss {state.history[0]['train_loss']:.4f}" and len(said) == 4


def test_progress_is_copied():
    progress = Progress()
    fit(small_model(), TRAIN, epochs=1, progress=progress)
    assert progress == Progress()


# ---- losses that are not finite ----

def test_a_loss_that_is_not_finite_stops_the_run_at_once():
    model, seen = small_model(), []

    def on_step(state):
        seen.append(state.model.vector.data.copy())
        if len(seen) == 7:      # the next batch is step 3 of epoch 2
            state.model.linear1.bias.data[1] = np.inf
            seen[-1] = state.model.vector.data.copy()
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 3: the loss is (nan|inf); .* in linear1") as caught:
        fit(model, TRAIN, TEST, epochs=3, batch_size=5, on_step=on_step)
    error = caught.value
    assert (error.epoch, error.step, error.layer, len(seen)) == (2, 3, "linear1", 7) and not math.isfinite(error.loss)
    np.testing.assert_array_equal(model.vector.data, seen[-1])


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_learning_rate_that_is_too_large_is_found():
    model = small_model()
    with pytest.raises(NonFiniteLoss):
        fit(model, TRAIN, epochs=3, batch_size=5, loss=nbcnn.MSELoss(), optimizer=SGD(model.parameters(), lr=1e10))


def test_a_finite_loss_with_parameters_that_are_not():
    """The last update of an epoch, or before a stop, must not reach a checkpoint."""
    for stop in (3, 5):
        def on_step(state, stop=stop):
            if state.progress.step == stop:
                state.model.conv1.weight.data[0, 0, 0, 0] = np.nan
                state.stop = stop == 3
        with pytest.raises(NonFiniteLoss) as caught:
            fit(small_model(), TRAIN, TEST, batch_size=5, on_step=on_step)
        assert (caught.value.layer, caught.value.step) == ("conv1", stop)


def test_a_test_loss_that_is_not_finite():
    dark, bright = (Dataset(np.full((4, 2, 6, 6), value, np.uint8), np.zeros(4, int), ["a", "b", "c"], "one") for value in (0, 255))
    model = small_model()
    model.mean, model.std = [0.0, 0.0], [1e-25, 1e-25]      # what is bright is finite until it is squared
    with pytest.raises(NonFiniteLoss, match="epoch 1, step 1: the loss is inf; the first value that is not finite is in loss"):
        fit(model, dark, bright, loss=nbcnn.MSELoss(), optimizer=SGD(model.parameters(), lr=0), batch_size=4)


# ---- errors ----

@pytest.mark.parametrize("arguments, message", [
    (dict(train=images(0)), "train: expected at least one image"),
    (dict(test=images(0)), "test: expected at least one image"),
    (dict(loss=nbcnn.MSELoss(reduction="sum")), "loss: expected reduction 'mean', got 'sum'"),
    (dict(epochs=-1), "epochs"),
    (dict(batch_size=0), "batch_size"),
    (dict(progress=Progress(step=9, samples=9)), "start: expected at most 5"),
])
def test_errors(arguments, message):
    model = small_model()
    before = model.vector.data.copy()
    with pytest.raises(ValueError, match=message):
        fit(model, **({"train": TRAIN, "test": TEST, "batch_size": 5} | arguments))
    assert (model.vector.data == before).all()


def test_progress_is_checked():
    with pytest.raises(TypeError, match="step"):
        Progress(step="3")
    with pytest.raises(ValueError, match="epoch"):
        Progress(epoch=-1)


# ---- what a recipe may ask for

AUGMENT = dict(flip="alternate", shift=1, shift_per="image", border="reflect")


def test_parts_of_epochs_and_what_goes_with_them():
    """1.5 epochs of 4 batches, without the rest, are 6 steps, written out by hand; the bias stays after the first epoch."""
    model, ours = small_model(), small_model()
    step, optimizer = BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.Adam(model.parameters(), lr=0.01)
    slow, ema = optim.Lookahead(optimizer, every=2, decay=0.75), optim.EMA(model, 0.5)
    loader = Loader(TRAIN, 5, seed=3, augment=True, mean=model.mean, std=model.std, drop_last=True, **AUGMENT)
    for k, (images, labels) in enumerate([*loader.epoch(0), *loader.epoch(1)][:6]):
        model.conv1.bias.trainable = k < 4
        step.forward(images, labels)
        slow.zero_grad()
        step.backward()
        assert optim.clip_grad_norm_(model.parameters(), 0.5) > 0.5
        slow.step()
        ema.update()
    slow.finish()
    with ema.weights():
        expected = nbcnn.evaluate(model, TEST, views=2)
    average = optim.EMA(ours, 0.5)
    optimizer = optim.Lookahead(nbcnn.Adam(ours.parameters(), lr=0.01), every=2, decay=0.75)
    state = fit(ours, TRAIN, TEST, epochs=1.5, batch_size=5, optimizer=optimizer, augment=AUGMENT, seed=3, clip_norm=0.5,
                ema=average, freeze={"conv1.bias": 1}, views=2, drop_last=True)
    assert all((value == ours.state_dict()[name]).all() for name, value in model.state_dict().items())
    assert (average.average == ema.average).all() and ours.frozen == ["conv1.bias"]
    assert (state.progress.epoch, state.epochs, state.batches) == (2, 2, 4)
    assert state.history[-1]["test_loss"] == expected.loss and state.history[0]["test_loss"] != expected.loss


def test_patience():
    """The images have no classes that could be learned: what is best is so by chance."""
    accuracies, best = [], []
    for patience in (1, 3):
        state = fit(small_model(), TRAIN, TEST, epochs=30, batch_size=5, patience=patience)
        accuracies = [row["test_accuracy"] for row in state.history]
        best = accuracies.index(max(accuracies))
        assert len(accuracies) == best + 1 + patience < 30 and state.progress.best_epoch == best + 1


@pytest.mark.parametrize("options, error, message", [
    (dict(clip_norm=0), ValueError, "clip_norm: expected a positive number"),
    (dict(ema=0.9), TypeError, "ema: expected a nbcnn.optim.EMA"),
    (dict(ema=optim.EMA(small_model(), 0.5)), ValueError, "ema: expected that of the model, got another one's"),
    (dict(freeze={"conv.bias": 1}), ValueError, "freeze: expected names of parameters, got 'conv.bias'"),
    (dict(freeze={"conv1.bias": 0.5}), TypeError, r"freeze\['conv1.bias'\]: expected an int"),
    (dict(freeze=3), TypeError, "freeze: "),
    (dict(patience=0), ValueError, "patience: expected an int >= 1, got 0"),
    (dict(epochs=-1), ValueError, "epochs: expected a number"), (dict(epochs="3"), TypeError, "epochs: expected a number >= 0"),
    (dict(augment=dict(shift=9)), ValueError, "shift: expected at most"),
    (dict(batch_size=23, drop_last=True), ValueError, "batch_size: expected at most the 22 images with drop_last, got 23"),
    (dict(views=3, epochs=0), ValueError, "views: "),
])
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fit(small_model(), TRAIN, TEST, verbose=0, **options)
