"""Hostile arguments for everything public: a typed error of one line that names the argument, and nothing changed.

Half of the calls of the whole campaign run with bounds checks, which see a kernel that reads or writes beside an array.
"""
import contextlib
import fractions
import functools
import inspect
import itertools
import re

import numpy as np

import nbcnn
from nbcnn import kernels, losses, models, optim, pictures, views
from nbcnn.datasets import Dataset, Loader, class_weights

import cases
from arrays import Reshaped
from campaign.harness import outcomes, survey

TYPED = {"ok", "TypeError", "ValueError", "IndexError", "MemoryError"}
LARGE = 2**31               # an array is small, or of more bytes than a worker gets: one that just fits is work, and no error
ASKS_FOR_WORK = {"epochs", "steps", "threads"}       # numbers of which a large one is no error either
ALSO = {"targets": "t"}     # what messages call an argument of a method that hands it on
WRITTEN = {("sgd_step", "param"), ("sgd_step", "momentum_buffer"), ("load_images", "out"), ("normalize_images", "out"),
           *(("adam_step", name) for name in ("param", "exp_avg", "exp_avg_sq"))}
RESULTS = {"Evaluation", "NonFiniteLoss", "State"}      # classes that nobody but nbcnn makes

rng = np.random.default_rng(0)
START = rng.bit_generator.state


def f32(*shape):
    return rng.standard_normal(shape, np.float32)


def u8(*shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def unit(*shape):
    return rng.random(shape, np.float32)


def small_dataset():
    return Dataset(u8(12, 3, 8, 8), np.arange(12) % 3, ["a", "b", "c"], "small")


def network():
    return nbcnn.Sequential([("c", nbcnn.Conv2d(3, 4, 3)), ("p", nbcnn.MaxPool2d(2)), ("f", nbcnn.Flatten()),
                             ("l", nbcnn.Linear(36, 3))], input_shape=(3, 8, 8))


def used(layer, *shape):
    """A layer's output, in a model of its own."""
    return nbcnn.Sequential([layer])(np.zeros((2, *shape), np.float32))


def both(kind, x, t, **options):
    """A loss's value and gradient."""
    return kind(**options).forward_backward(x, t)


def table():
    """All that is public, by name: (function, what gives it good arguments)."""
    data, trained = small_dataset(), network()
    scheduler = nbcnn.BackpropScheduler(network(), nbcnn.CrossEntropyLoss())
    optimizer = nbcnn.SGD(scheduler.model.parameters(), lr=0.1, momentum=0.5)
    entries = {
        **{name: functools.partial(arguments, rng) for name, arguments in cases.KERNELS.items()},
        "softmax": lambda: dict(x=f32(4, 5), axis=1), "log_softmax": lambda: dict(x=f32(4, 5), axis=1),
        "cross_entropy_forward": lambda: dict(x=f32(4, 5), t=rng.integers(0, 5, 4), reduction="mean", weight=unit(5),
                                              ignore_index=-100, label_smoothing=0.1),
        "cross_entropy_backward": lambda: dict(x=f32(4, 5), t=unit(4, 5), reduction="sum", weight=unit(5), ignore_index=-100,
                                               label_smoothing=0.1, dloss=1.0),
        "mse_loss_forward": lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="none"),
        "mse_loss_backward": lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="none", dloss=f32(4, 5)),
        "l1_loss_forward": lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="mean"),
        "l1_loss_backward": lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="mean", dloss=1.0),
        "bce_loss_forward": lambda: dict(x=unit(4, 5), t=unit(4, 5), reduction="mean", weight=unit(4, 5)),
        "bce_loss_backward": lambda: dict(x=unit(4, 5), t=unit(4, 5), reduction="mean", weight=unit(4, 5), dloss=1.0),
        "bce_with_logits_forward": lambda: dict(x=f32(4, 5), t=unit(4, 5), reduction="mean", weight=unit(4, 5), pos_weight=unit(5)),
        "bce_with_logits_backward": lambda: dict(x=f32(4, 5), t=unit(4, 5), reduction="mean", weight=unit(4, 5),
                                                 pos_weight=unit(5), dloss=1.0),
        "sgd_step": lambda: dict(param=f32(50), grad=f32(50), momentum_buffer=f32(50), lr=0.1, momentum=0.9, dampening=0.0,
                                 weight_decay=0.1, nesterov=False, maximize=False, first=False),
        "adam_step": lambda: dict(param=f32(50), grad=f32(50), exp_avg=f32(50), exp_avg_sq=unit(50), step=3, lr=0.1, eps=1e-8,
                                  betas=(0.9, 0.99), weight_decay=0.1, decoupled_weight_decay=False, maximize=False),
        "normalization_table": lambda: dict(mean=[0.5] * 3, std=[0.2] * 3, channels=3, dtype=np.float32),
        "normalize_images": lambda: dict(out=f32(2, 3, 8, 8), images=u8(2, 3, 8, 8), table=f32(3, 256)),
        "load_images": lambda: dict(out=f32(2, 3, 8, 8), images=u8(5, 3, 8, 8), index=rng.integers(0, 5, 2),
                                    flip=np.array([True, False]), shift=(1, -1), table=f32(3, 256), border="zero", cutout=3,
                                    corners=(2, -1)),
    }
    calls = {name: (getattr(kernels, name), arguments) for name, arguments in entries.items()}
    calls |= {
        # layers
        **{case.layer.__name__: (lambda case=case, **a: used(case.layer(**a), *case.shape), lambda case=case: dict(case.arguments))
           for case in cases.LAYERS if case.arguments},
        # losses
        "L1Loss": (lambda **a: both(nbcnn.L1Loss, **a), lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="mean")),
        "MSELoss": (lambda **a: both(nbcnn.MSELoss, **a), lambda: dict(x=f32(4, 5), t=f32(4, 5), reduction="sum")),
        "CrossEntropyLoss": (lambda **a: both(nbcnn.CrossEntropyLoss, **a), lambda: dict(
            x=f32(4, 5), t=rng.integers(0, 5, 4), weight=[1, 2, 3, 4, 5], ignore_index=-100, reduction="mean",
            label_smoothing=0.1)),
        "BCELoss": (lambda **a: both(nbcnn.BCELoss, **a), lambda: dict(x=unit(4, 5), t=unit(4, 5), weight=2.0, reduction="mean")),
        "BCEWithLogitsLoss": (lambda **a: both(nbcnn.BCEWithLogitsLoss, **a), lambda: dict(
            x=f32(4, 5), t=unit(4, 5), weight=unit(4, 5), reduction="mean", pos_weight=[1, 1, 2, 2, 3])),
        # models
        "Sequential": (lambda layers, **a: nbcnn.Sequential(layers, **a), lambda: dict(
            layers=[("f", nbcnn.Flatten()), ("l", nbcnn.Linear(12, 3))], input_shape=(3, 2, 2), mean=[0.5] * 3, std=[0.2] * 3,
            classes=["a", "b", "c"], seed=0, dtype=np.float32)),
        "Network": (lambda layers, inputs, **a: nbcnn.Network([*layers, ("a", nbcnn.Add(), inputs)], **a), lambda: dict(
            layers=[("f", nbcnn.Flatten(), ["input"]), ("l", nbcnn.Linear(12, 3), ["f"])], inputs=["l", "l"],
            frozen=["l.bias"])),
        "Network.frozen": (lambda frozen: setattr(network(), "frozen", frozen), lambda: dict(frozen=["l.bias"])),
        "Parameter": (lambda **a: nbcnn.Parameter(init=nbcnn.init.constant(1), **a), lambda: dict(shape=(3,), trainable=True)),
        "Statistic": (nbcnn.Statistic, lambda: dict(shape=(3,), value=0.5, dtype=None)),
        "init.uniform": (nbcnn.init.uniform, lambda: dict(fan_in=9)), "init.normal": (nbcnn.init.normal, lambda: dict(std=0.1)),
        "init.dirac": (nbcnn.init.dirac, lambda: dict(fan_in=9)), "init.constant": (nbcnn.init.constant, lambda: dict(value=1.0)),
        "Sequential.predict": (trained.predict, lambda: dict(images=f32(2, 3, 8, 8), batch_size=256)),
        "Sequential.predict of bytes": (trained.predict, lambda: dict(images=u8(2, 3, 8, 8), batch_size=1)),
        "Sequential.output_shape": (trained.output_shape, lambda: dict(input_shape=(3, 8, 8))),
        "Sequential.to": (trained.to, lambda: dict(device="cpu")),
        "Sequential.evaluate": (trained.evaluate, lambda: dict(dataset=data, loss=None, batch_size=5)),
        "Sequential.load_state_dict": (lambda state: network().load_state_dict(state), lambda: dict(state=network().state_dict())),
        "Sequential.load_state_dict of arrays": (lambda **state: network().load_state_dict(state), network().state_dict),
        "Parameter.set": (lambda values: network().parameters()[0].set(values), lambda: dict(values=f32(4, 3, 3, 3))),
        "Parameter.grad": (lambda grad: setattr(network().parameters()[0], "grad", grad), lambda: dict(grad=f32(4, 3, 3, 3))),
        "models.cifar10_quick": (models.cifar10_quick, lambda: dict(mean=None, std=None, classes=None, seed=0, dtype=np.float32)),
        "models.make": (models.make, lambda: dict(network="cifar10_quick")),
        "models.find": (models.find, lambda: dict(name="cifar10_quick")),
        # training
        "BackpropScheduler": (lambda **a: nbcnn.BackpropScheduler(trained, **a), lambda: dict(loss=losses.MSELoss(), fuse=True)),
        "BackpropScheduler.forward": (scheduler.forward, lambda: dict(
            images=f32(2, 3, 8, 8), targets=rng.integers(0, 3, 2), training=True)),
        "BackpropScheduler.train_step": (lambda **a: scheduler.train_step(**{"optimizer": optimizer} | a), lambda: dict(
            images=f32(2, 3, 8, 8), targets=rng.integers(0, 3, 2), clip_norm=1.0)),
        "BackpropScheduler.predict": (scheduler.predict, lambda: dict(images=f32(2, 3, 8, 8), training=True)),
        "BackpropScheduler.plan": (scheduler.plan, lambda: dict(shape=(3, 8, 8))),
        "BackpropScheduler.images": (scheduler.images, lambda: dict(n=2)),
        "SGD": (nbcnn.SGD, lambda: dict(params=network().parameters(), lr=0.1, momentum=0.5, dampening=0, weight_decay=0,
                                        nesterov=False, maximize=False)),
        "SGD.load_state_dict": (lambda state: nbcnn.SGD(network().parameters(), 0.1).load_state_dict(state), lambda: dict(
            state=optimizer.state_dict())),
        "SGD.load_state_dict of options": (
            lambda **state: nbcnn.SGD(network().parameters(), 0.1).load_state_dict(state), optimizer.state_dict),
        "Adam": (nbcnn.Adam, lambda: dict(params=network().parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1,
                                          amsgrad=False, maximize=False)),
        "AdamW": (nbcnn.AdamW, lambda: dict(params=[dict(params=network().parameters(), lr=0.1)], betas=(0.9, 0.99))),
        "Adam.load_state_dict of options": (
            lambda **state: nbcnn.Adam(network().parameters()).load_state_dict(state),
            lambda: nbcnn.Adam(network().parameters()).state_dict()),
        "Lookahead": (nbcnn.Lookahead, lambda: dict(optimizer=nbcnn.SGD(network().parameters(), lr=0.1), every=5, decay=0.5)),
        "Lookahead.load_state_dict of entries": (
            lambda **state: nbcnn.Lookahead(nbcnn.SGD(network().parameters(), lr=0.1)).load_state_dict(state),
            lambda: nbcnn.Lookahead(nbcnn.SGD(network().parameters(), lr=0.1)).state_dict()),
        "EMA": (lambda **a: nbcnn.EMA(**{"model": trained} | a).update(), lambda: dict(decay=0.9)),
        "clip_grad_norm_": (nbcnn.clip_grad_norm_, lambda: dict(parameters=trained.parameters(), max_norm=1.0)),
        "optim.multistep": (lambda **a: optim.multistep(**a)(3), lambda: dict(lr=0.1, milestones=[2, 4], gamma=0.1)),
        "optim.piecewise": (lambda **a: optim.piecewise(**a)(3), lambda: dict(lr=0.1, points=[(0, 0.2), (1, 1.0)], total=10)),
        "ReduceLROnPlateau": (lambda **a: optim.ReduceLROnPlateau(**{"optimizer": optimizer} | a), lambda: dict(
            mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel", cooldown=0, min_lr=0.0, eps=1e-8)),
        "ReduceLROnPlateau.step": (optim.ReduceLROnPlateau(optimizer).step, lambda: dict(metrics=1.0)),
        "optim.constant": (lambda **a: optim.constant(**a)(3), lambda: dict(lr=0.1)),
        "optim.step": (lambda **a: optim.step(**a)(3), lambda: dict(lr=0.1, step_size=2, gamma=0.1)),
        "optim.cosine": (lambda **a: optim.cosine(**a)(3), lambda: dict(lr=0.1, total=10, final=0.0)),
        "optim.one_cycle": (lambda **a: optim.one_cycle(**a)(3), lambda: dict(
            max_lr=0.1, total=10, pct_start=0.2, div_factor=25.0, final_div_factor=1e4)),
        "Progress": (nbcnn.Progress, lambda: dict(epoch=1, step=0, loss_sum=0.0, samples=0, best_accuracy=0.5, best_epoch=1)),
        "fit": (nbcnn.fit, lambda: dict(
            model=network(), train=data, test=data, epochs=1, batch_size=4, loss=None, optimizer=None, schedule=None, shuffle=True,
            augment=False, seed=0, progress=None, on_step=None, on_epoch=None, profile=False)),
        "fit of a recipe": (lambda **a: nbcnn.fit(network(), data, data, batch_size=4, verbose=0, **a), lambda: dict(
            epochs=1, clip_norm=1.0, ema=None, freeze={"c.bias": 1}, patience=2, views=1, drop_last=False)),
        "find_lr": (lambda **a: nbcnn.find_lr(network(), data, batch_size=4, **a), lambda: dict(
            steps=3, lowest=1e-3, highest=1.0, make_optimizer=None)),
        "evaluate": (nbcnn.evaluate, lambda: dict(model=trained, dataset=data, loss=None, batch_size=5, views=2)),
        "measure": (nbcnn.evaluation.measure, lambda: dict(
            scheduler=scheduler, dataset=data, batch_size=4, on_batch=None, views=1)),
        "mean_of_views": (lambda **a: views.mean_of_views(trained, **a), lambda: dict(images=u8(2, 3, 8, 8), views=6)),
        # data
        "Dataset": (Dataset, lambda: dict(images=u8(3, 3, 4, 4), labels=np.array([0, 1, 2]), classes=["a", "b", "c"], name="n")),
        "class_weights": (class_weights, lambda: dict(dataset=data)),
        "Loader": (lambda **a: next(Loader(**a).epoch(0)), lambda: dict(
            dataset=data, batch_size=4, shuffle=True, seed=0, augment=True, flip=0.5, shift=2, shift_per="batch", border="zero",
            cutout=2, mean=[0.5] * 3, std=[0.2] * 3, dtype=np.float32)),
        "Loader.epoch": (lambda **a: list(itertools.islice(Loader(data, 4).epoch(**a), 2)), lambda: dict(
            epoch=1, into=None, start=0)),
        "read_picture": (lambda shape: pictures.read_picture("nowhere.png", shape), lambda: dict(shape=(3, 8, 8))),
    }
    return calls


class Evil:
    """An object of which nothing works."""
    def fail(self, *arguments, **options):
        raise RuntimeError("evil\nobject")
    __array__ = __index__ = __float__ = __bool__ = __len__ = __iter__ = __repr__ = __eq__ = __hash__ = __getattr__ = fail


class FakeDevice:
    """An array of a GPU, it says."""
    @property
    def __cuda_array_interface__(self):
        return {"shape": (2, 3), "typestr": "<f4", "data": (16, False), "version": 3}


class Liar(np.ndarray):
    """A subclass that says what the kernels like to hear."""
    dtype = property(lambda self: np.dtype(np.float32))
    shape = property(lambda self: (2, 3, 8, 8))
    strides = property(lambda self: (4, 4, 4, 4))


def oddities():
    """What is no array."""
    numbers = [
        None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, -2**31, 2**31, 2**31 - 1, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30,
        -10**30, 10**5000, -10**5000, 0.5, -0.5, 1e308, 1e39, 5e-324, float("nan"), float("inf"), -float("inf"), 1j,
        fractions.Fraction(1, 3), fractions.Fraction(10**400), np.int8(2), np.uint64(2**64 - 1), np.int64(-1), np.float32(2),
        np.float16(1), np.longdouble(2), np.bool_(True), np.array(2), np.array(2.5), np.datetime64("2020"), np.ma.masked]
    texts = ["", "x", "mean", "1", "cpu", b"x", "\ud800", "a\nb\x1b[31m", "\u202e", "../x", "a" * 10000,
             np.str_("none"), np.array("x")]
    sequences = [
        (), [], {}, set(), (1,), (1, 2), (2, 2), (1, 2, 3), (0, 0), (-1, 2), (2**40, 1), (1, 2**40), (2**31, 2**31),
        (1, 1, 2**31, 2**31), (2, 3, 0, 0), (2, 3, 8, 8), (2**62, 3, 8, 8), (2**63, 1, 1, 1), (True, 2), (1.5, 2), ("a", "b"),
        [[1, 2], [3]], {1: 2}, {"a": None}, np.array([2, 2]), np.zeros(0), np.array([None]), range(3), range(2**40), iter([1, 2]),
        itertools.count(), (k for k in (2, 2)), memoryview(b"abcd"), bytearray(b"abc"), [1] * 1000, [[[[1]]]] * 3, [Evil()]]
    objects = [object(), Evil(), FakeDevice(), lambda *a: None, lambda k: "x", lambda k: float("nan"), int, float, np.float32,
               "float16", np.dtype([("a", "f4")]), slice(None), ..., NotImplemented, nbcnn, nbcnn.Flatten(),
               type("two\nlines" * 99, (), {})()]
    return [*numbers, *texts, *sequences, *objects]


def relatives(a):
    """Arrays that resemble a good one, each as a function."""
    def strided():
        view = np.empty(tuple(2 * n for n in a.shape), a.dtype)[tuple(slice(None, None, 2) for _ in a.shape)]
        view[...] = a
        return view

    def unaligned():
        view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view

    def filled(value):
        return lambda: np.full(a.shape, value).astype(a.dtype)

    def resized(axis, size):
        shape = list(a.shape)
        shape[axis] = size
        return lambda: np.broadcast_to(a.dtype.type(1), shape)

    def read_only():
        b = a.copy()
        b.flags.writeable = False
        return b
    kinds = [np.float16, np.float32, np.float64, np.longdouble, np.complex64, np.int8, np.int32, np.int64, np.uint64, np.bool_,
             object, "U3", "S2", "M8[s]", a.dtype.newbyteorder(">")]
    several = [lambda kind=kind: a.astype(kind) for kind in kinds]
    if a.ndim:
        several += [resized(axis, size) for axis in range(a.ndim)
                    for size in (0, 1, a.shape[axis] - 1, a.shape[axis] + 1, LARGE, 2**33, 2**40, 2**58)]
    return [
        *several, strided, unaligned, read_only, *map(filled, (-1, 1, 100, np.nan, np.inf, 1e38, 1e-42)),
        lambda: a[tuple(slice(None, None, -1) for _ in a.shape)], lambda: np.asfortranarray(a), lambda: a.T, lambda: a[None],
        lambda: a[..., None], lambda: a[0], lambda: a.reshape(-1), lambda: a.tolist(), lambda: memoryview(np.ascontiguousarray(a)),
        lambda: np.broadcast_to(a.dtype.type(1), a.shape), lambda: np.lib.stride_tricks.as_strided(a, a.shape, [0] * a.ndim),
        lambda: np.zeros(a.shape, [("a", a.dtype), ("b", "i4")]), lambda: np.recarray(a.shape, dtype=[("x", a.dtype)]),
        lambda: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) % 3 == 0), lambda: np.matrix(a.reshape(len(a), -1)),
        lambda: a.view(Reshaped), lambda: a.astype(np.float64).view(Liar), lambda: a.reshape(-1)[:1].view(Liar)]


def prepare():
    calls = table()
    for name, (function, make) in calls.items():      # compiled before the clock runs, for both dtypes
        good = make()
        double = {key: value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
                  for key, value in make().items()}
        for arguments in (good, double, *([good | {"profile": True}] if name == "fit" else [])):
            with contextlib.suppress(FileNotFoundError, TypeError):     # of weights, whose dtype is that of x
                function(**arguments)
    return calls


def case(calls, draw):
    rng.bit_generator.state = START
    name = draw.choice(list(calls))
    function, make = calls[name]
    arguments = make()
    hit = draw.sample(list(arguments), min(len(arguments), draw.choice([1, 1, 1, 2, 3])))
    for key in hit:
        good = arguments[key]
        if isinstance(good, np.ndarray) and draw.random() < 0.85:
            try:
                arguments[key] = draw.choice(relatives(good))()
            except (TypeError, ValueError, IndexError, OverflowError):      # there is no such relative
                continue
        else:
            odd = oddities()
            arguments[key] = draw.choice([value for value in odd if type(value) is not int or abs(value) <= 3]
                                         if key in ASKS_FOR_WORK else odd)
    kept = {key: value.copy() for key, value in arguments.items()
            if type(value) is np.ndarray and value.size < 10**6 and (name, key) not in WRITTEN}

    def call():
        try:
            function(**arguments)
        finally:
            changed = [key for key, value in kept.items() if value.tobytes() != arguments[key].tobytes()]
            assert not changed, f"changed {changed}"
    described = {key: f"{type(arguments[key]).__name__} {arguments[key].dtype} {arguments[key].shape}"
                 if type(arguments[key]) is np.ndarray else ascii_of(arguments[key]) for key in hit}
    return [name, list(arguments), described], call


def ascii_of(value):
    try:
        return ascii(value)[:80]
    except Exception:
        return type(value).__name__[:80]


def test_the_table_has_all_that_is_public():
    public = {name for name, value in vars(nbcnn).items() if inspect.isclass(value)} - RESULTS
    without_arguments = {"Layer", "Activation"} | {case.layer.__name__ for case in cases.LAYERS if not case.arguments}
    named = {name.split(".")[0] for name in table()}
    assert set(kernels.__all__) | public <= named | without_arguments
    assert {name for name in public if not inspect.signature(getattr(nbcnn, name)).parameters} == without_arguments


def test_hostile_calls(full, seed, tmp_path):
    """Half of all with bounds checks: all is compiled anew then, which takes minutes."""
    count = 25_000 if full else 400
    limits = {"seconds": 120}       # much of it the compiler's
    records, checked = survey(__name__, count, seed, **limits), []
    # What took long as it was compiled is fast the second time, as compiled code is kept.
    slow = [survey(__name__, 1, seed, first=record["case"], **limits)[0] for record in records if record["seconds"] > 2]
    if full:
        environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
        checked = survey(__name__, count, seed + 1, environment=environment, **limits)
    print(f"{outcomes(records)}, with bounds checks {outcomes(checked)}; {len(slow)} slow at first")
    wrong = [record for record in records + checked if fault(record)] + [record for record in slow if record["seconds"] > 2]
    unnamed = [record for record in records + checked
               if record["outcome"] in ("TypeError", "ValueError", "IndexError") and not names(record)]
    assert not wrong, wrong[:10]
    assert len(unnamed) <= 0.02 * len(records + checked), unnamed[:20]


def fault(record):
    """What must not be, whatever the call."""
    name, message, outcome = record["what"][0], record["message"], record["outcome"]
    allowed = outcome in TYPED or (name == "read_picture" and outcome == "FileNotFoundError")
    of_a_kernel = outcome == "IndexError" and "out of bounds" in message
    return not allowed or of_a_kernel or "\n" in message or len(message) > 400 or record["bytes"] > 2**30


def names(record):
    """Whether the message has the name of an argument."""
    _, arguments, _ = record["what"]
    return any(re.search(rf"\b{re.escape(name)}\b", record["message"]) for key in arguments for name in (key, ALSO.get(key, key)))
