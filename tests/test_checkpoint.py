"""Checkpoints: what an independent reader finds in them, what comes back, and what happens to damaged or unfinished ones."""
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_own_layers import Shift

import nbcnn
from nbcnn import checkpoint
from nbcnn.optim import SGD
from nbcnn.progress import Progress


def small_model(dtype=np.float32, seed=0):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(2, 3, (3, 2), padding=(1, 0))), ("relu1", nbcnn.ReLU()),
                             ("maxpool1", nbcnn.MaxPool2d(2, ceil_mode=True)), ("flatten", nbcnn.Flatten()),
                             ("linear1", nbcnn.Linear(18, 4, bias=False))],
                            input_shape=(2, 4, 6), mean=[0.1, 1 / 3], std=[0.1 + 0.2, 5e-324], classes=["\u00e4", "b\"", "c", "d"],
                            seed=seed, dtype=dtype)


def trained(dtype=np.float32, params=slice(None)):
    """A model and an optimizer that has momentum for all of its parameters but one."""
    model, rng = small_model(dtype), np.random.default_rng(0)
    optimizer = SGD(model.parameters()[params], lr=0.1, momentum=0.9, weight_decay=1 / 3, nesterov=True)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape)
        model.conv1.bias.grad = None
        optimizer.step()
    return model, optimizer


PROGRESS = Progress(epoch=3, step=17, loss_sum=0.1 + 0.2, samples=1088, best_accuracy=1 / 3, best_epoch=2)
OPTIONS = {"lr": 0.02, "tiny": 5e-324, "huge": 1.7976931348623157e308, "third": 1 / 3, "out": "r\u00fcns/\u2603", "threads": None}


@pytest.fixture
def file(tmp_path):
    model, optimizer = trained()
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, model, optimizer=optimizer, progress=PROGRESS, options=OPTIONS)
    return path


def read_by_hand(path):
    """The file format as its specification has it: a length, a JSON header, the bytes."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, content = json.loads(content[8:8 + size]), content[8 + size:]
    about = json.loads(header.pop("__metadata__")["nbcnn"])
    types = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
    return about, {name: np.frombuffer(content[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
                   for name, entry in header.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_independent_reader_finds_what_the_state_dict_says(tmp_path, dtype):
    model, optimizer = trained(dtype)
    checkpoint.save(tmp_path / "file", model, optimizer=optimizer, progress=PROGRESS, options=OPTIONS)
    about, tensors = read_by_hand(tmp_path / "file")
    expected = dict(model.state_dict())
    for name in ("conv1.weight", "linear1.weight"):
        expected[f"optimizer.momentum_buffer.{name}"] = optimizer.momentum_buffer(dict(model.named_parameters())[name])
    assert set(tensors) == set(expected) == set(load_file(tmp_path / "file"))
    for name, value in expected.items():
        assert tensors[name].dtype == dtype and tensors[name].shape == value.shape
        assert (tensors[name] == value).all() and (load_file(tmp_path / "file")[name] == value).all()
    assert about["structure"] == json.loads(json.dumps(model.structure())) and about["classes"] == model.classes
    assert (about["mean"], about["std"], about["dtype"]) == (model.mean, model.std, np.dtype(dtype).name)
    assert about["options"] == OPTIONS and about["progress"] == vars(PROGRESS) and about["format"] == 2
    group, = about["optimizer"]["param_groups"]
    assert about["optimizer"]["class"] == "SGD" and group["weight_decay"] == 1 / 3
    assert group["params"] == ["conv1.weight", "conv1.bias", "linear1.weight"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("params", [slice(None), slice(1, None), slice(2, 0, -1)], ids=str)
def test_everything_comes_back(tmp_path, dtype, params):
    model, optimizer = trained(dtype, params)
    checkpoint.save(tmp_path / "file", model, optimizer=optimizer, progress=PROGRESS, options=OPTIONS)
    found = checkpoint.load(tmp_path / "file")
    assert (found.model.vector.data == model.vector.data).all()
    for name in ("mean", "std", "classes", "input_shape", "dtype", "seed"):
        assert getattr(found.model, name) == getattr(model, name)
    assert found.model.structure() == model.structure() and found.progress == PROGRESS and found.options == OPTIONS
    before, after = optimizer.state_dict(), found.optimizer.state_dict()
    for mine, theirs in zip(before.pop("momentum_buffers"), after.pop("momentum_buffers"), strict=True):
        assert (mine is None) == (theirs is None) and (mine is None or (mine == theirs).all())
    assert before == after
    checkpoint.save(tmp_path / "again", found.model, optimizer=found.optimizer, progress=found.progress, options=found.options)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_model_alone(tmp_path):
    model = small_model()
    checkpoint.save(tmp_path / "file", model)
    found = checkpoint.load(tmp_path / "file")
    assert (found.model.vector.data == model.vector.data).all()
    assert (found.optimizer, found.progress, found.options) == (None, Progress(), {})


# ---- optimizers, and what goes beside them ----

def sgd_groups(model):
    groups = [dict(params=[model.conv1.weight], lr=0.3, momentum=0.5), dict(params=[model.linear1.weight, model.conv1.bias])]
    return SGD(groups, lr=0.1, weight_decay=1 / 3)


def adam_groups(model):
    return nbcnn.Adam([dict(params=model.conv1.weight, betas=(0.5, 0.75)), dict(params=[model.conv1.bias, model.linear1.weight])])


MAKERS = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.1), "groups": sgd_groups, "adam": adam_groups,
    "adamw": lambda model: nbcnn.AdamW(model.parameters()[1:], lr=0.01, maximize=True),
    "lookahead": lambda model: nbcnn.Lookahead(SGD(model.parameters(), lr=0.1, momentum=0.9), every=3, decay=1 / 3),
    "lookahead of adam": lambda model: nbcnn.Lookahead(adam_groups(model), every=2, decay=lambda step: 0.9 / step),
}


def steps(model, optimizer, ema, count, seed):
    """So many steps with gradients at random, every other one without the first layer's bias."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape)
        if k % 2:
            model.conv1.bias.grad = None
        optimizer.lr *= 0.9
        optimizer.step()
        ema.update()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_run_goes_on_with_the_same_bits(tmp_path, kind, dtype):
    model = small_model(dtype)
    optimizer, ema = MAKERS[kind](model), nbcnn.EMA(model, 0.9)
    steps(model, optimizer, ema, 5, 0)
    checkpoint.save(tmp_path / "file", model, optimizer=optimizer, ema=ema)
    found = checkpoint.load(tmp_path / "file")
    assert type(found.optimizer) is type(optimizer) and repr(found.ema) == repr(ema)
    checkpoint.save(tmp_path / "again", found.model, optimizer=found.optimizer, ema=found.ema)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    if kind == "lookahead of adam":     # whose decay is a function
        with pytest.raises(RuntimeError, match=r"^decay: expected the function that the Lookahead had, which a file cannot hold"):
            steps(found.model, found.optimizer, found.ema, 1, 1)
        found = checkpoint.load(tmp_path / "file")
        found.optimizer.decay = optimizer.decay
    else:
        assert repr(found.optimizer) == repr(optimizer)
    for run in ((model, optimizer, ema), (found.model, found.optimizer, found.ema)):
        steps(*run, 4, 1)
    assert (found.model.vector.data == model.vector.data).all() and (found.ema.average == ema.average).all()
    assert [group["lr"] for group in found.optimizer.param_groups] == [group["lr"] for group in optimizer.param_groups]
    if "lookahead" in kind:
        assert (found.optimizer.slow == optimizer.slow).all() and found.optimizer.steps == optimizer.steps == 9


def test_what_an_independent_reader_finds_of_averages(tmp_path):
    """The model's own values stay its own."""
    model = small_model()
    optimizer, ema = MAKERS["lookahead of adam"](model), nbcnn.EMA(model, 0.9)
    steps(model, optimizer, ema, 5, 0)
    before = model.vector.data.copy()
    checkpoint.save(tmp_path / "file", model, optimizer=optimizer, ema=ema)
    assert (model.vector.data == before).all()
    about, tensors = read_by_hand(tmp_path / "file")
    assert about["lookahead"] == {"every": 2, "decay": None, "steps": 5} and about["ema"] == {"decay": 0.9}
    assert about["optimizer"]["class"] == "Adam" and about["optimizer"]["steps"] == [5, 3, 5]
    for name, parameter in model.named_parameters():
        for prefix, values in (("slow.", optimizer.slow), ("ema.", ema.average), ("", model.vector.data)):
            assert (tensors[prefix + name] == parameter.shaped(values[parameter.start:parameter.stop])).all()
        assert (tensors[f"optimizer.exp_avg_sq.{name}"] == optimizer.optimizer.slot("exp_avg_sq", parameter)).all()
    assert len(tensors) == 5 * 3


def test_what_a_checkpoint_does_not_take(tmp_path):
    model, other = small_model(), small_model()

    class Own(SGD):
        pass
    for options, error, message in (
            (dict(optimizer=Own(model.parameters(), lr=0.1)), TypeError, "optimizer: expected one of SGD, Adam, AdamW, got Own"),
            (dict(optimizer=SGD(other.parameters(), lr=0.1)), ValueError, "optimizer: expected that of the model, got another"),
            (dict(ema=nbcnn.EMA(other, 0.9)), ValueError, "ema: expected that of the model, got another one's")):
        with pytest.raises(error, match=message):
            checkpoint.save(tmp_path / "file", model, **options)
    assert os.listdir(tmp_path) == []


def test_statistics_counts_and_what_is_frozen_come_back(tmp_path):
    model = nbcnn.Sequential([("shift", Shift(3)), ("linear", nbcnn.Linear(3, 2))], input_shape=(3,))
    model.linear.bias.trainable = False
    optimizer, ema = nbcnn.Lookahead(SGD(model.parameters(), lr=0.1), every=2), nbcnn.EMA(model, 0.5)
    scheduler = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    for _ in range(3):
        scheduler.train_step(np.ones((2, 3), np.float32), np.array([0, 1]), optimizer)
        ema.update()
    checkpoint.save(tmp_path / "file", model, optimizer=optimizer, ema=ema)
    about, tensors = read_by_hand(tmp_path / "file")
    assert about["steps"] == 3 and about["frozen"] == ["linear.bias"] and tensors["shift.count"] == 10
    assert "slow.shift.seen" in tensors and "slow.shift.count" not in tensors and "ema.shift.count" not in tensors
    found = checkpoint.load(tmp_path / "file", [Shift])
    assert (found.model.vector.data == model.vector.data).all() and (found.model.vector.counts == [3, 10]).all()
    assert [p.trainable for p in found.model.parameters()] == [True, True, False]
    assert (found.optimizer.slow == optimizer.slow).all() and (found.ema.average == ema.average).all()
    checkpoint.save(tmp_path / "again", found.model, optimizer=found.optimizer, ema=found.ema)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    before = (tmp_path / "file").read_bytes()
    for change, message in (
            (lambda about, _: about.update(steps=-1), "steps: expected an int >= 0, got -1"),
            (lambda about, _: about.update(frozen=["linear.bias", "nobody"]), "frozen: expected names of parameters, got nobody"),
            (lambda _, tensors: tensors.pop("shift.seen"), "missing shift.seen"),
            (lambda _, tensors: tensors.pop("ema.shift.seen"), "it has no entry 'ema.shift.seen'"),
            (lambda _, tensors: tensors.update({"shift.count": np.array(3, np.float32)}), "shift.count: expected int64, got float"),
            (lambda _, tensors: tensors.update({"shift.seen": np.zeros(3, np.int64)}), "shift.seen: expected float32, got int64"),
            (lambda _, tensors: tensors.update({"slow.shift.seen": np.zeros(3, np.int64)}), "slow.shift.seen: expected float32"),
            (lambda _, tensors: tensors.update({"slow.shift.seen": np.zeros(4, np.float32)}), "slow.shift.seen: expected shape"),
            (lambda about, _: about["lookahead"].update(steps=2.5), "steps: expected an int"),
            (lambda about, _: about["lookahead"].update(every=0), "every: expected an int >= 1, got 0")):
        (tmp_path / "file").write_bytes(before)
        forge(tmp_path / "file", change)
        refuse(tmp_path / "file", message, [Shift])


# ---- format 1 ----

FORMAT_1 = Path(__file__).parent / "data" / "format1.safetensors"      # what `file` below was when format 1 was written, at 7d3151c


def test_a_file_of_format_1(tmp_path):
    """Every number of it is there again; and a step from there on is the one by hand."""
    about, tensors = read_by_hand(FORMAT_1)
    assert about["format"] == 1 and "optimizer.momentum.conv1.weight" in tensors
    found = checkpoint.load(FORMAT_1)
    for name, parameter in found.model.named_parameters():
        assert (parameter.data == tensors[name]).all()
        momentum, given = found.optimizer.momentum_buffer(parameter), tensors.get(f"optimizer.momentum.{name}")
        assert (momentum is None) == (given is None) == (name == "conv1.bias") and (given is None or (momentum == given).all())
    assert (found.progress, found.options, found.ema) == (PROGRESS, OPTIONS, None) and about["optimizer"].pop("params")
    assert {name: getattr(found.optimizer, name) for name in about["optimizer"]} == about["optimizer"]
    assert found.optimizer.param_groups[0]["initial_lr"] == about["optimizer"]["lr"]
    checkpoint.save(tmp_path / "file", found.model, optimizer=found.optimizer, progress=found.progress, options=found.options)
    again = checkpoint.load(tmp_path / "file")
    for one in (found, again):
        one.model.linear1.weight.grad = np.ones((4, 18))
        one.optimizer.step()
    assert (again.model.vector.data == found.model.vector.data).all()
    g = np.float32(1) + np.float32(1 / 3) * tensors["linear1.weight"]
    g += np.float32(0.9) * (np.float32(0.9) * tensors["optimizer.momentum.linear1.weight"] + g)
    expected = tensors["linear1.weight"] - np.float32(0.1) * g
    assert np.abs(found.model.linear1.weight.data - expected).max() < 8 * np.finfo(np.float32).eps      # numbers below 1


@pytest.mark.parametrize("change, message", [
    (lambda about, _: about["optimizer"].update(lr=-1), "lr: expected a finite number >= 0, got -1"),
    (lambda about, _: about["optimizer"].update(params=["nobody"]), "it has no entry 'nobody'"),
    (lambda _, tensors: tensors.update({"optimizer.momentum.conv1.weight": np.zeros(2, np.float32)}), "momentum_buffer of shapes"),
    (lambda _, tensors: tensors.update({"optimizer.momentum.x.weight": np.zeros(2, np.float32)}), "momentum_buffer.x.weight"),
])
def test_contents_of_format_1_that_make_no_sense(tmp_path, change, message):
    path = tmp_path / "file"
    path.write_bytes(FORMAT_1.read_bytes())
    forge(path, lambda about, tensors: None)
    checkpoint.load(path)
    forge(path, change)
    refuse(path, message)


# ---- writing ----

@pytest.mark.parametrize("place, error", [("fsync", OSError(28, "No space left on device")), ("replace", OSError(5, "I/O error")),
                                          ("fsync", KeyboardInterrupt())], ids=["full", "rename", "Ctrl-C"])
def test_the_old_file_stays_when_writing_fails(file, monkeypatch, place, error):
    before = file.read_bytes()

    def fail(*arguments):
        raise error
    monkeypatch.setattr(os, place, fail)
    with pytest.raises(type(error)):
        checkpoint.save(file, small_model(seed=5))
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]
    if isinstance(error, OSError):
        assert error.filename == str(file)


def test_the_new_file_is_whole_before_it_gets_its_name(file, monkeypatch):
    """Written and synced under another name in the same folder, then renamed, then the folder is synced."""
    events, fsync, replace = [], os.fsync, os.replace

    def logged_fsync(descriptor):
        events.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_replace(source, target):
        assert checkpoint.load(source).model.seed == 5 and checkpoint.load(target).model.seed == 0
        events.append(f"rename {os.path.basename(source)}")
        replace(source, target)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    checkpoint.save(file, small_model(seed=5))
    temporary = events[0].split()[1]
    assert events == [f"fsync {temporary}", f"rename {temporary}", f"fsync {file.parent.name}"] and temporary != file.name


def test_what_json_cannot_hold_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(file, small_model(), options={"x": np.zeros(2)})
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(os.name == "nt", reason="needs links, modes and pipes")
def test_links_are_followed_modes_kept_and_what_is_no_file_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    real, link, pipe = tmp_path / "a" / "real", tmp_path / "b" / "link", tmp_path / "pipe"
    link.symlink_to(real)
    small_model(seed=1).save(link)
    assert link.is_symlink() and nbcnn.load(real).seed == 1
    real.chmod(0o600)
    small_model(seed=2).save(link)
    assert link.is_symlink() and nbcnn.load(real).seed == 2 and real.stat().st_mode & 0o777 == 0o600
    os.mkfifo(pipe)
    for place in (pipe, tmp_path / "a"):
        with pytest.raises(OSError, match="not a regular file") as caught:
            small_model().save(place)
        assert caught.value.filename == str(place)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["a", "b", "pipe"]


def test_save_and_load_of_a_model(tmp_path):
    model = small_model(seed=3)
    model.save(tmp_path / "model")
    again = nbcnn.load(tmp_path / "model")
    assert isinstance(again, nbcnn.Sequential) and again.structure() == model.structure()
    assert all((again.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    assert (again.mean, again.classes, again.input_shape) == (model.mean, model.classes, model.input_shape)
    trained_model, optimizer = trained()
    checkpoint.save(tmp_path / "run", trained_model, optimizer=optimizer)
    assert (nbcnn.load(tmp_path / "run").vector.data == trained_model.vector.data).all()
    with pytest.raises(ValueError, match="not a safetensors file"):
        (tmp_path / "text").write_text("hello")
        nbcnn.load(tmp_path / "text")
    nbcnn.save(model, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == (tmp_path / "model").read_bytes()
    with pytest.raises(TypeError, match=r"^model: expected a nbcnn\.Sequential, got str$"):
        nbcnn.save("same", model)


# ---- reading ----

def refuse(path, message=None, layers=()):
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load(path, layers)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_every_truncation_is_found(file):
    content = file.read_bytes()
    for size in [*range(0, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:size])
        refuse(file)
    file.write_bytes(content + b"\0")
    refuse(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@example(position=7, bit=7)     # a header of 2^63 bytes
def test_every_changed_bit_is_found(file, position, bit):
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << bit
    changed = file.with_name("changed")
    changed.write_bytes(content)
    try:
        found = checkpoint.load(changed)
    except ValueError:
        refuse(changed)
    else:       # another way to write the same, as 5E-324 for 5e-324
        checkpoint.save(changed, found.model, optimizer=found.optimizer, progress=found.progress, options=found.options)
        assert changed.read_bytes() == file.read_bytes()


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"hello", b"\x80\x04N.", b"PK\x03\x04" + bytes(200), b"{" * 1000):
        (tmp_path / "file").write_bytes(content)
        refuse(tmp_path / "file", "not a safetensors file, or a damaged one")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign")
    refuse(tmp_path / "foreign", "a safetensors file, but not a checkpoint of nbcnn")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign", metadata={"format": "pt"})
    refuse(tmp_path / "foreign", "not a checkpoint of nbcnn")
    for entry in ("", "[]", "[" * 100_000, "{}", "null", "3"):
        save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign", metadata={"nbcnn": entry})
        refuse(tmp_path / "foreign", "not a readable checkpoint")
    for path, error in ((tmp_path / "missing", FileNotFoundError), (tmp_path, OSError)):
        with pytest.raises(error) as caught:
            checkpoint.load(path)
        assert caught.value.filename == str(path)


def forge(file, change):
    """Rewrite a checkpoint with other contents and a checksum that fits."""
    about, tensors = read_by_hand(file)
    tensors = {name: np.array(value) for name, value in tensors.items()}
    change(about, tensors)
    about.pop("crc32")
    about["crc32"] = checkpoint._checksum(about, tensors)
    save_file(tensors, file, metadata={"nbcnn": json.dumps(about)})


def group_of(about):
    return about["optimizer"]["param_groups"][0]


@pytest.mark.parametrize("change, message", [
    (lambda about, _: about.update(format=3), "its format is 3, this version of nbcnn reads 1 and 2"),
    (lambda about, _: about["structure"][0].__setitem__(1, "Conv3d"), "unknown layer type 'Conv3d'"),
    (lambda about, _: about["structure"][0].__setitem__(1, "Layer"), "unknown layer type"),
    (lambda about, _: about["structure"][0].__setitem__(1, "math"), "unknown layer type"),
    (lambda about, _: about["structure"][0][2].update(padding=-1), "padding"),
    (lambda about, _: about["structure"][0].__setitem__(1, "ConvPool"), "unknown layer type"),
    (lambda about, _: about["structure"][0].__setitem__(1, "inspect.getsource"), "unknown layer type"),
    (lambda about, _: about["structure"][0].__setitem__(1, ["Conv2d"]), "unknown layer type"),
    (lambda about, _: about["structure"][0][2].update(out_channels=10**9), "conv1.weight expected shape"),    # of terabytes
    (lambda about, _: about["structure"][0][2].update(padding=65), "conv1: padding: expected at most 64 for an input of 4 pixels"),
    (lambda about, _: about["structure"][0][2].update(stride=2**31), "stride: expected an int <= 2147483647"),
    (lambda about, _: about["structure"][2][2].update(kernel_size=10**15, padding=5 * 10**14), "kernel_size: expected"),
    (lambda about, _: about["structure"][2][2].update(kernel_size=10**9, padding=5 * 10**8), "maxpool1: padding: expected"),
    (lambda about, _: about["structure"][0].__setitem__(0, "predict"), "the name 'predict' is taken"),
    (lambda about, _: about["structure"][0].__setitem__(0, "__class__"), "the name '__class__' is taken"),
    (lambda about, _: about["structure"].extend([[f"r{k}", "ReLU", {}] for k in range(40_000)]), "layers: expected at most 5000"),
    (lambda about, _: about["structure"][0].__setitem__(0, "x\n" * 5000), "state: missing x x x x"),
    (lambda about, _: about["classes"].pop(), "classes: expected a name for each output, of shape .4,., got 3 names"),
    (lambda about, _: about.pop("structure"), "it has no entry 'structure'"),
    (lambda about, _: about.update(dtype="float16"), "float16"),
    (lambda about, _: about["progress"].update(step=-1), "step"),
    (lambda about, _: about["progress"].update(steps=1), "steps"),
    (lambda about, _: about["progress"].update(epoch=10**30), "epoch: expected an int <= 2147483647, got 10{30}"),
    (lambda about, _: about["progress"].update(samples=10**400), "samples: expected an int <= 2147483647"),
    (lambda about, _: about["progress"].update(samples=16), "samples: expected at least one for each of 17 batches, got 16"),
    (lambda about, _: about["progress"].update(loss_sum=float("nan")), "loss_sum: expected a finite number, got nan"),
    (lambda about, _: about["progress"].update(loss_sum="x"), "loss_sum: expected a finite number, got 'x'"),
    (lambda about, _: about["progress"].update(best_epoch=4), "best_epoch: expected at most the 3 epochs finished, got 4"),
    (lambda about, _: about["progress"].update(best_accuracy=[1]), "best_accuracy: expected a number in .0, 1., got .1."),
    (lambda about, _: about["progress"].update(best_accuracy=None), "best_accuracy: expected that of epoch 2, got None"),
    (lambda about, _: group_of(about).update(lr=-1), "lr"),
    (lambda about, _: group_of(about).update(initial_lr=-1), "initial_lr"),
    (lambda about, _: group_of(about).update(rate=1), "gives, got missing or other entries .'rate'."),
    (lambda about, _: group_of(about).pop("lr"), "gives, got missing or other entries .'lr'."),
    (lambda about, _: group_of(about).update(params=["conv1.weight", "nobody"]), "it has no entry 'nobody'"),
    (lambda about, _: group_of(about).update(params=["conv1.weight"] * 2), "params: expected each Parameter once"),
    (lambda about, _: about["optimizer"]["param_groups"].clear(), "params: expected at least one Parameter, got none"),
    (lambda about, _: about["optimizer"].update({"class": "Optimizer"}), "it has no entry 'Optimizer'"),
    (lambda about, _: about["optimizer"].update({"class": "Adam"}), "state: expected what Adam.state_dict.. gives"),
    (lambda about, _: about["optimizer"].update(steps=[1, 2, 3]), "gives, got missing or other entries .'steps'."),
    (lambda about, _: about.update(lookahead={"every": 5, "decay": 0.5, "steps": 3}), "it has no entry 'slow.conv1.weight'"),
    (lambda about, _: about.update(ema={"decay": 2}), "decay: expected a number in .0, 1., got 2"),
    (lambda _, tensors: tensors.pop("conv1.bias"), "missing conv1.bias"),
    (lambda _, tensors: tensors.update(more=np.zeros(2, np.float32)), "unexpected more"),
    (lambda _, tensors: tensors.update({"conv1.bias": np.zeros(2, np.float32)}), "conv1.bias expected shape"),
    (lambda _, tensors: tensors.update({"conv1.bias": np.zeros(3)}), "conv1.bias: expected float32, got float64"),
    (lambda _, tensors: tensors.update({"optimizer.momentum_buffer.conv1.weight": np.zeros(2, np.float32)}),
     "expected momentum_buffer of shapes"),
    (lambda _, tensors: tensors.update({"optimizer.momentum_buffer.x.weight": np.zeros(2, np.float32)}),
     "tensors of nothing that it describes: optimizer.momentum_buffer.x.weight"),
    (lambda _, tensors: tensors.update({"ema.conv1.bias": np.zeros(3, np.float32)}), "of nothing that it describes: ema.conv1"),
])
def test_contents_that_make_no_sense_are_refused(file, change, message):
    forge(file, lambda about, tensors: None)
    checkpoint.load(file)
    forge(file, change)
    refuse(file, message)


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)      # so that who opens it to read does not wait
    try:
        for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                nbcnn.load(path)
            assert caught.value.filename == str(path)
    finally:
        os.close(writer)


def test_a_description_has_a_largest_size(file, monkeypatch):
    """The same for who writes and who reads."""
    before = file.read_bytes()
    with pytest.raises(ValueError, match="options: expected a description of model and options of at most 10000000 bytes, got 100"):
        checkpoint.save(file, small_model(), options={"x": "y" * 10**7})
    assert file.read_bytes() == before
    file.write_bytes((10**7 + 1).to_bytes(8, "little") + b"{" * 10**7 + before)
    refuse(file, "its header has 10000001 bytes, more than 10000000")
    monkeypatch.setattr(checkpoint, "machine_memory", lambda: 1000)
    refuse(file, "expected a file that memory of 1,000 bytes can hold")


def test_loading_takes_three_times_the_file(tmp_path):
    """Its tensors, the parameters, one of them on its way there; and room for gradients, which is not touched. Nothing is drawn."""
    nbcnn.Sequential([nbcnn.Linear(2000, 1000)]).save(tmp_path / "file")
    tracemalloc.start()
    try:
        model = nbcnn.load(tmp_path / "file")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model.vector.data.any() and peak < 4.1 * (tmp_path / "file").stat().st_size
