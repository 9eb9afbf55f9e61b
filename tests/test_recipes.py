"""The recipes of `nbcnn train`: their numbers, and that any run of them goes on with the same bits."""
import math

import numba
import numpy as np
import pytest
from test_train import after_each_batch, images, rows, stop_after, untimed

import nbcnn
from nbcnn import checkpoint, models, optim, recipes, train
from nbcnn.datasets import Loader, choice
from nbcnn.losses import CrossEntropyLoss

SMALL = images(42, 0, size=12), images(20, 1, size=12)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "shapes", lambda: SMALL)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield tmp_path
    numba.set_num_threads(threads)


def run(*arguments):
    return train.main(["--batch-size", "8", "--quiet", *map(str, arguments)])


AIRBENCH = "--recipe", "airbench94", "--epochs", 2.5, "--lr", 0.05
EVERYTHING = {
    "airbench94": AIRBENCH,
    "adam": ("--recipe", "resnet20", "--epochs", 2, "--optimizer", "adam", "--lr", 0.01, "--ema", 0.8, "--clip-norm", 1,
             "--cutout", 4, "--class-weights", "balanced"),
    "adamw": ("--model", "lenet5", "--epochs", 2, "--optimizer", "adamw", "--lr", 0.01, "--lookahead", 2, "--patience", 5),
}


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("batches", [3, 7])
def test_resume_ends_with_the_same_bits(small, signals, monkeypatch, name, batches):
    """Running statistics, slots, counts, slow copies, averages and what is frozen: all of it is in last.safetensors."""
    assert run(*EVERYTHING[name], "--out", "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        assert run(*EVERYTHING[name], "--out", "part") == 130
    assert train.main(["--resume", "part/last.safetensors", "--quiet"]) == 0
    for file in ("last.safetensors", "best.safetensors"):
        assert (small / "part" / file).read_bytes() == (small / "whole" / file).read_bytes()
    assert untimed(small / "part") == untimed(small / "whole")


def test_airbench94_is_the_published_recipe(small):
    """Against a loop written out by hand, with the loss summed and the rates of the publication."""
    assert run(*AIRBENCH[:4], "--out", "run", "--seed", 3) == 0
    (data, test), size, momentum = SMALL, 8, 0.85
    model = models.airbench94(input_shape=(3, 12, 12), mean=[0.5] * 3, std=[0.29] * 3, classes=data.classes, seed=3)
    models.whiten(model, data.images)
    k = size * (1 + 1 / (1 - momentum))
    lr, decay = 11.5 / k, 0.0153 * size / k
    biases = [p for name, p in model.named_parameters() if name.startswith("norm") and name.endswith("bias")]
    others = [p for p in model.parameters() if p not in biases]
    optimizer = nbcnn.SGD([dict(params=others, weight_decay=decay / lr),
                           dict(params=biases, lr=64 * lr, weight_decay=decay / 64 / lr)], lr=lr, momentum=momentum, nesterov=True)
    step = nbcnn.BackpropScheduler(model, CrossEntropyLoss(label_smoothing=0.2, reduction="sum"))
    loader = Loader(data, size, seed=3, augment=True, mean=model.mean, std=model.std, drop_last=True, flip="alternate", shift=2,
                    shift_per="image", border="reflect")
    total, done, slow = math.ceil(2.5 * 5), 0, model.vector.data.copy()
    for batch, labels in [*loader.epoch(0), *loader.epoch(1), *loader.epoch(2)][:total]:
        part = done / total
        optimizer.lr = lr * (0.2 + 0.8 * part / 0.23 if part < 0.23 else 1 - 0.93 * (part - 0.23) / 0.77)
        step.train_step(batch, labels, optimizer)
        done += 1
        if done % 5 == 0:
            d = 0.95 ** 5 * (done / total) ** 3
            slow[:] = d * slow + (1 - d) * model.vector.data
            model.vector.data[:] = slow
    model.vector.data[:] = slow
    found = checkpoint.load("run/last.safetensors")
    for name, value in found.model.state_dict().items():
        # float32: the mean of the loss and the larger rate round elsewhere than the sum and the smaller one.
        np.testing.assert_allclose(value, model.state_dict()[name], rtol=2e-3, atol=2e-4, err_msg=name)
    assert found.model.frozen == model.frozen and len(model.frozen) == 7
    tested, six = rows(small / "run")[-1], nbcnn.evaluate(found.model, test, CrossEntropyLoss(label_smoothing=0.2), views=6)
    assert (float(tested["test_loss"]), float(tested["test_accuracy"])) == (six.loss, six.accuracy)


def test_the_published_bias_learns_for_three_epochs(small, monkeypatch):
    seen = []
    after_each_batch(monkeypatch, lambda state: seen.append((state.progress.epoch, state.model.conv1.bias.trainable)))
    assert run("--recipe", "airbench94", "--epochs", 4, "--lr", 0.01, "--out", "run") == 0
    run_of_the_command = seen[-20:]     # not those before, in which kernels are compiled
    assert run_of_the_command == [(k // 5, k < 15) for k in range(20)]


def test_resnet20_is_the_published_recipe():
    """He et al. 2015, section 4.2: of 64,000 steps, those from 32,000 and from 48,000 on have a tenth and a hundredth of the rate;
    four pixels are around the images, of which any piece is taken, or its mirror image."""
    options, published = recipes.RECIPES["resnet20"], dict(
        batch_size=128, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0001, augment=True, flip="0.5", shift=4,
        shift_per="image", border="zero")
    assert {name: options[name] for name in published} == published
    rate = recipes.SCHEDULES[options["schedule"]](options["lr"], 64_000)
    assert [rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == pytest.approx([.1, .1, .01, .01, .001, .001])


def test_digits_are_not_augmented_unless_asked_for():
    """A mirrored digit is none, so `nbcnn.fit` leaves them alone too."""
    assert [recipes.new_options({"dataset": name, **given})["augment"] for name, given in (
        ("mnist", {}), ("mnist", {"augment": True}), ("fashion-mnist", {}))] == [False, True, True]


def test_an_average_is_what_is_tested_and_kept(small):
    assert run("--model", "mlp", "--epochs", 2, "--ema", 0.9, "--out", "run") == 0
    found, table = checkpoint.load("run/last.safetensors"), rows(small / "run")
    averaged = nbcnn.load("run/last.safetensors")
    assert float(table[-1]["test_loss"]) == nbcnn.evaluate(averaged, SMALL[1]).loss
    assert float(table[-1]["test_loss"]) != nbcnn.evaluate(found.model, SMALL[1]).loss
    assert isinstance(found.ema, optim.EMA) and found.ema.decay == 0.9


def test_a_range_test_says_a_rate_and_leaves_nothing(small, capsys):
    assert run("--model", "mlp", "--find-lr") == 0
    out = capsys.readouterr().out
    assert "learning rate" in out and "the loss falls fastest at 0.0" in out and not [*small.iterdir()]


def test_a_range_test_of_a_library_user():
    model = models.mlp(input_shape=(3, 12, 12), classes=SMALL[0].classes)
    before = model.vector.data.copy()
    found = nbcnn.find_lr(model, SMALL[0], steps=40, batch_size=8)
    assert (model.vector.data == before).all() and found.rates[0] == 1e-5 and found.rates == sorted(found.rates)
    assert found.rates[1] / found.rates[0] == pytest.approx(10 ** (6 / 39)) and 1e-3 < found.lr < 1
    again = nbcnn.find_lr(model, SMALL[0], steps=40, batch_size=8)
    assert again.losses == found.losses
    adam = nbcnn.find_lr(model, SMALL[0], steps=40, batch_size=8, make_optimizer=lambda model: nbcnn.Adam(model.parameters()))
    assert adam.lr < found.lr       # its first steps are lr long whatever the gradient, SGD's are lr times the gradient
    for options, error, message in ((dict(steps=1), ValueError, "steps: expected an int >= 2"),
                                    (dict(lowest=0), ValueError, "lowest: expected a positive number"),
                                    (dict(lowest=1, highest=0.5), ValueError, "highest: expected a number above lowest, 1"),
                                    (dict(make_optimizer=lambda model: 3), TypeError, "make_optimizer: expected a function that")):
        with pytest.raises(error, match=f"^{message}"):
            nbcnn.find_lr(model, SMALL[0], **options)


def test_checkpoints_of_before_these_options_go_on(small):
    """As at 23ee04c, which had none of them."""
    assert run("--epochs", 2, "--out", "run", "--model", "cifar10_quick") == 0
    saved = checkpoint.load("run/last.safetensors")
    for name in recipes.BEFORE.keys() - {"size", "channels"}:       # these were 32 and 3
        del saved.options[name]
    checkpoint.save("old.safetensors", **vars(saved))
    assert train.main(["--resume", "old.safetensors", "--out", "again", "--quiet"]) == 0
