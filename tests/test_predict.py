"""The command that says what is in images: its lines, its JSON, bad images among good ones, and exit statuses."""
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import nbcnn
from nbcnn import checkpoint, memory, predict
from nbcnn.pictures import read_pictures

CLASSES = ["red", "green", "blue"]
NO_IMAGE = "not an image that can be read: none of JPEG, PNG, GIF, BMP, PPM, TIFF, WEBP, AVIF"


def network(classes=CLASSES, **options):
    """The mean of each colour, times 12, is a logit."""
    model = nbcnn.Sequential([("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(3 * 8 * 8, 3, bias=False))],
                             **{"input_shape": (3, 8, 8), "classes": classes, **options})
    model.linear.weight.set(np.repeat(np.eye(3), 64, axis=1) * 12 / 64)
    return model


def image(name, red, green, blue):
    Image.new("RGB", (16, 8), (red, green, blue)).save(name)
    return name


def shares(*bytes):
    """What the network says of an image, by the definition of softmax."""
    e = np.exp(np.array(bytes) / 255 * 12)
    return (e / e.sum()).tolist()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    network().save("net.safetensors")
    return tmp_path


def run(*argv):
    return predict.main(["--checkpoint", "net.safetensors", *argv])


# ---- what it prints ----

def test_a_line_per_image(capsys):
    a, b = image("a.png", 255, 204, 0), image("b c.bmp", 0, 0, 51)
    assert run(a, b) == 0
    red, green, blue = shares(255, 204, 0)
    first, second = f"a.png\tred {red:.3f}, green {green:.3f}, blue {blue:.3f}\n", shares(0, 0, 51)
    second = f"b c.bmp\tblue {second[2]:.3f}, red {second[0]:.3f}, green {second[1]:.3f}\n"    # equal ones in the classes' order
    assert capsys.readouterr() == (first + second, "")
    assert run(b, "--top", "1", a) == 0
    assert capsys.readouterr().out == f"{second.split(',')[0]}\na.png\tred {red:.3f}\n"
    assert run(a, "--top", "100") == 0
    assert capsys.readouterr().out == first
    os.rename(a, "-x.png")
    assert run("--top", "1", "--", "-x.png", b) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["-x.png", b]


def test_json(capsys):
    assert run(image("\u00fc\t.png", 0, 255, 0), image("b.png", 9, 9, 9), "--json", "--top", "2") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"picture": "\u00fc\t.png", "classes": [
        {"class": "green", "probability": pytest.approx(shares(0, 255, 0)[1], abs=1e-6)},
        {"class": "red", "probability": pytest.approx(shares(0, 255, 0)[0], abs=1e-6)}]}
    assert [entry["class"] for entry in second["classes"]] == ["red", "green"]


def test_the_checkpoint_is_enough_mean_std_and_names(capsys):
    network(None, mean=[0.5] * 3, std=[0.25] * 3).save("net.safetensors")
    assert run(image("a.png", 255, 127, 0), "--top", "1") == 0
    e = np.exp([24, 12 * (127 / 255 - 0.5) / 0.25, -24])
    assert capsys.readouterr().out == f"a.png\t0 {e[0] / e.sum():.3f}\n"


@pytest.mark.parametrize("loss, noun, expected", [
    ("cross_entropy", "probability", shares(51, 0, 0)[0]), ("bce", "probability", 1 / (1 + np.exp(-2.4))),
    ("mse", "output", 2.4), ("l1", "output", 2.4),
])
def test_outputs_are_shown_as_what_the_training_made_them(capsys, loss, noun, expected):
    checkpoint.save("net.safetensors", network(), options={"loss": loss})
    assert run(image("a.png", 51, 0, 0), "--json", "--top", "1") == 0
    (found,) = json.loads(capsys.readouterr().out)["classes"]
    assert found == {"class": "red", noun: pytest.approx(expected, rel=1e-5)}


def test_folders_and_many_images_in_batches(folder, monkeypatch, capsys):
    monkeypatch.setattr(predict, "BATCH", 4)
    (folder / "in" / "deep").mkdir(parents=True)
    names = [image(f"in/{k:02}.png", 3 * k, 200, 0) for k in range(11)] + [image("in/deep/a.png", 255, 0, 0)]
    (folder / "in" / "notes.txt").write_text("no image, and not looked at")
    assert run("in", image("last.png", 0, 0, 255), "--top", "1") == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [name for name, _ in lines] == [*sorted(names), "last.png"] and err == ""
    for name, found in lines[:11]:
        assert found == f"green {shares(3 * int(name[3:5]), 200, 0)[1]:.3f}"
    assert lines[-1][1].startswith("blue") and lines[-2][1].startswith("red")


def test_views_of_each_image(capsys):
    """A red corner that counts 12 is there in the image itself, not in its mirror image, and in no view that is moved."""
    model = network()
    weight = np.zeros((3, 3 * 8 * 8))
    weight[0, 0] = 12
    model.linear.weight.set(weight)
    model.save("net.safetensors")
    picture = Image.new("RGB", (8, 8))
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save("corner.png")
    for views, red in (("1", 12), ("2", 12 / 2), ("6", 12 / 4)):
        assert run("corner.png", "--top", "1", "--views", views) == 0
        assert capsys.readouterr().out == f"corner.png\tred {np.exp(red) / (np.exp(red) + 2):.3f}\n"
    assert run("corner.png", "--views", "4") == 2
    assert "--views: invalid choice: 4 (choose from 1, 2, 6)" in capsys.readouterr().err


def test_grey_networks(capsys):
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(16, 2)], input_shape=(1, 4, 4), classes=["dark", "bright"])
    model[1].weight.set(np.repeat([[-1.0], [1.0]], 16, axis=1))
    model.save("net.safetensors")
    assert run(image("a.png", 255, 255, 255), "--top", "1") == 0 and capsys.readouterr().out == "a.png\tbright 1.000\n"


def test_standard_input(monkeypatch, capsys):
    with open(image("a.png", 255, 0, 0), "rb") as file:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(file.read())))
    assert run("-", "--top", "1") == 0
    assert capsys.readouterr().out == f"-\tred {shares(255, 0, 0)[0]:.3f}\n"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"no image")))
    assert run("-") == 2
    assert capsys.readouterr() == ("", f"nbcnn predict: -: {NO_IMAGE}\n")


def test_a_progress_bar_on_a_terminal_for_many(monkeypatch, capsys):
    monkeypatch.setattr(predict, "BATCH", 2)
    names = [image(f"{k}.png", 255, 0, 0) for k in range(5)]
    assert run(*names) == 0 and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*names) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 5 and "/5" in err
    assert run(*names[:2]) == 0 and capsys.readouterr().err == ""


def test_many_pixels_where_that_is_asked_for(capsys):
    image("a.png", 255, 0, 0)
    assert run("a.png", "--max-pixels", "127") == 2
    assert "a.png: not an image that can be read: it has 16 x 8 pixels, more than 127; max_pixels" in capsys.readouterr().err
    assert run("a.png", "--max-pixels", "128") == 0


# ---- bad images ----

def test_one_bad_image_is_reported_and_the_rest_go_on(folder, capsys):
    (folder / "bad.png").write_bytes(b"?")
    (folder / "empty").mkdir()
    a = image("a.png", 255, 0, 0)
    assert run("bad.png", a, "nowhere.png", "empty", a, "--top", "1") == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == ["a.png", "a.png"]
    assert sorted(err.splitlines()) == [
        f"nbcnn predict: bad.png: {NO_IMAGE}",
        "nbcnn predict: empty: no images in this folder, by the ends of their names",
        "nbcnn predict: nowhere.png: No such file or directory"]


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b""), lambda path: path.write_text("hello"), lambda path: None, lambda path: path.mkdir(),
    lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))])
def test_nothing_but_bad_images_is_2(folder, capsys, make):
    make(folder / "x.png")
    assert run("x.png") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nbcnn predict: x.png: ") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="needs a file system that takes any bytes as names")
def test_names_that_are_no_text():
    name = b"\xff\n\x1b[31m.png"
    Image.new("RGB", (8, 8)).save(os.fsdecode("a.png"))
    os.rename("a.png", name)
    done = subprocess.run([sys.executable, "-m", "nbcnn.predict", "--checkpoint", "net.safetensors", name, "--top", "1"],
                          capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\xff\\n\\x1b[31m.png\tred 0.333\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file system that takes any character")
def test_a_stream_without_a_character_gets_it_escaped():
    image("\u732b.png", 0, 0, 0)
    done = subprocess.run([sys.executable, "-m", "nbcnn.predict", "--checkpoint", "net.safetensors", "\u732b.png", "--top", "1"],
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert (done.returncode, done.stdout) == (0, b"\\u732b.png\tred 0.333\n")


def test_a_reader_that_goes_away():
    """Nothing is said about it, neither by us nor at the end by Python, whose buffer still holds lines."""
    names = [image(f"{k}.png", 0, 0, 0) for k in range(40)]
    running = subprocess.Popen([sys.executable, "-m", "nbcnn.predict", "--checkpoint", "net.safetensors", *names * 100],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read() == b"" and running.wait(60) == 141


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
def test_closed_streams():
    image("a.png", 255, 0, 0)
    predict = f"{sys.executable} -m nbcnn.predict --checkpoint net.safetensors --top 1"
    done = subprocess.run(f"{predict} - a.png <&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("a.png\tred") and done.stderr == (
        f"nbcnn predict: -: {NO_IMAGE}\n")
    done = subprocess.run(f"{predict} a.png >&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(f"{predict} nowhere.png {'a.png ' * 300} 2>&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("a.png\tred")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_and_devices_are_not_waited_for(folder, capsys):
    (folder / "in").mkdir()
    os.mkfifo("in/a.png")
    image("in/b.png", 255, 0, 0)
    os.symlink("nowhere", "in/c.png")
    os.symlink("a.png", "in/d.png")
    assert run("in", "in/a.png", "/dev/zero", "--top", "1") == 1
    out, err = capsys.readouterr()
    assert out.startswith("in/b.png\t") and out.count("\n") == 1
    assert err.splitlines() == ["nbcnn predict: in/c.png: No such file or directory",
                                *(f"nbcnn predict: {name}: not a regular file" for name in ("in/d.png", "in/a.png", "/dev/zero"))]


def test_what_is_not_finite_is_null_in_json(capsys):
    model = network()
    model.linear.weight.set(np.full((3, 192), np.nan))
    model.save("net.safetensors")
    assert run(image("a.png", 1, 2, 3), "--json", "--top", "1") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [{"class": "red", "probability": None}]


def test_warnings_of_pillow_are_not_shown(capsys, recwarn):
    """A TIFF whose tags are cut off is read, and Pillow says so."""
    Image.new("RGB", (8, 8), (255, 0, 0)).save("a.tif", dpi=(72, 72))
    Image.MAX_IMAGE_PIXELS, before = 40, Image.MAX_IMAGE_PIXELS         # 64 pixels are more, but not twice as many
    try:
        assert run("a.tif", "--top", "1") == 0
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert capsys.readouterr().err == "" and not [w for w in recwarn if "Decompression" in str(w.category)]


# ---- bad arguments ----

@pytest.mark.parametrize("argv, message", [
    ([], "IMAGE: expected images, folders, or - for standard input, got none"),
    (["a.png", "--top", "0"], "--top: expected a whole number of at least 1, got '0'"),
    (["a.png", "--topp", "1"], "did you mean --top?"), (["a.png", "--threads", "4096"], "--threads: expected at most"),
    (["a.png", "--checkpoint", "nowhere"], "nowhere: No such file or directory"),
    (["a.png", "--checkpoint", "a.png"], "a.png: not a safetensors file"),
    (["a.png", "--checkpoint", "vectors.safetensors"],
     "--checkpoint vectors.safetensors: shape: expected (C, H, W) of an image with 1 or 3 channels, got (4,) as the network's"),
    (["a.png", "--checkpoint", "maps.safetensors"],
     "expected a network with a number for each class, got outputs of shape (4, 6, 6)"),
    (["a.png", "--checkpoint", "huber.safetensors"], "written with an option that does not exist, loss ['huber']"),
    (["a.png", "--checkpoint", "open.safetensors"], "got None as the network's input_shape"),
])
def test_errors_are_one_line(folder, capsys, argv, message):
    image("a.png", 1, 2, 3)
    nbcnn.Sequential([nbcnn.Linear(4, 2)], input_shape=(4,)).save("vectors.safetensors")
    nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, 2)]).save("open.safetensors")
    nbcnn.Sequential([nbcnn.Conv2d(3, 4, 3)], input_shape=(3, 8, 8)).save("maps.safetensors")
    checkpoint.save("huber.safetensors", network(), options={"loss": ["huber"]})
    before = sorted(folder.iterdir())
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("nbcnn predict: ") and err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_checkpoint_of_images_larger_than_memory(folder, monkeypatch, capsys):
    """Said before an image is read at that size."""
    for size in ([3, 16000, 16000], [3, 60000, 60000]):
        nbcnn.Sequential([nbcnn.GlobalAvgPool2d(), nbcnn.Flatten(), nbcnn.Linear(3, 3)], input_shape=size).save("large.safetensors")
        monkeypatch.setattr(predict, "read_pictures", None)
        assert predict.main([image("a.png", 1, 2, 3), "--checkpoint", "large.safetensors"]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1
        assert err.startswith("nbcnn predict: --checkpoint large.safetensors: 0: expected buffers of at most 536,870,912 bytes for "
                              "all layers and a batch of 1, got ") and "--max-memory" in err


def test_memory_for_fewer_images_at_a_time(folder, monkeypatch, capsys):
    files, sizes = [image(f"{k}.png", k, 0, 255 - k) for k in range(20)], []
    assert run(*files) == 0
    expected = capsys.readouterr()
    monkeypatch.setattr(predict, "read_pictures", lambda files, *rest: sizes.append(len(files)) or read_pictures(files, *rest))
    assert run(*files, "--max-memory", "9K") == 0
    assert capsys.readouterr() == expected and len(sizes) > 3 and sum(sizes) == 20
    assert run(*files, "--max-memory", "900") == 2
    assert "flatten: expected buffers of at most 900 bytes for all layers and a batch of 1, got" in capsys.readouterr().err
    assert memory.max_memory() == memory.machine_memory() // 2      # the command's limit ends with it


def test_without_a_checkpoint(capsys):
    assert predict.main(["a.png"]) == 2
    assert "expected a file that training or nbcnn.save wrote, a run's folder or latest, got none" in capsys.readouterr().err


def test_a_configuration_file(folder, capsys):
    (folder / "run.toml").write_text('checkpoint = "net.safetensors"\ntop = 1\njson = true\n')
    assert predict.main([image("a.png", 255, 0, 0), "--config", "run.toml", "--top", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 2
