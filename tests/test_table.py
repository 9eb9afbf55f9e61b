"""Names from files leave a terminal as it is, wherever they are printed."""
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import nbcnn
from nbcnn import __main__
from nbcnn.datasets import Dataset, choice
from nbcnn.progress import epoch_line
from nbcnn.table import NARROWEST, format_table, printable

# What sets a window's title, colours and clears in one character and in two, ends a line in three ways, and turns the direction.
HOSTILE = ["\x1b]0;owned\x07", "\x9b31mred", "b\u202egnp", "new\nline", "tab\tand\rreturn", "\x85\u2028\u2029",
           "\u061c\u200e\u200f\u2066\u2069", "\x7f\x80"]
FORBIDDEN = {chr(k) for k in (*range(32), *range(0x7f, 0xa0), 0x61c, 0x200e, 0x200f, *range(0x2028, 0x202f), *range(0x2066, 0x206a),
                              *range(0xd800, 0xdc80), *range(0xdd00, 0xe000))}


def test_printable():
    assert printable("a\tb\nc\x1b\x07\x7f\x9b") == r"a\tb\nc\x1b\x07\x7f\x9b"
    assert printable("\u202e\u2028\ud800") == r"\u202e\u2028\ud800"
    for text in ("", "cat", "\u732b \u00a0\u0645\u0631\u062d \U0001f431\u200d", "back\\slash", os.fsdecode(b"\xff\xfe")):
        assert printable(text) == text
    everything = "".join(map(chr, range(0x110000)))
    left = set(printable(everything))
    assert not left & FORBIDDEN and len(left) == 0x110000 - len(FORBIDDEN) - len(range(0xdc80, 0xdca0))


def test_format_table():
    lines = format_table(["\x1b[31m", "n"], [["a\nb", "1"], ["c", "20"]]).splitlines()
    assert lines == [r"\x1b[31m   n", "------------", r"a\nb       1", "c         20"]


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_the_width_is_that_of_the_terminal_and_80_in_a_pipe():
    code = "from nbcnn.table import width; print(width())"
    for columns, expected in ((None, 80), ("132", 132), ("3", NARROWEST)):
        env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | ({"COLUMNS": columns} if columns else {})
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
        assert int(done.stdout) == expected


def test_long_text_in_the_last_column_goes_on_below(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert format_table(["name", "n", "what"], [["a", "1", "words that go on and on"], ["b", "22", ""]]).splitlines() == [
        "name   n  what", "---------------------------------", "a      1  words that go on and on", "b     22"]
    rows = [["a", "1", "many words that go on and on, more than fit"], ["b", "22", ""]]
    assert format_table(["name", "n", "what"], rows).splitlines() == [
        "name   n  what", "-" * 39, "a      1  many words that go on and on,", "          more than fit", "b     22"]
    assert format_table(["a name of 24 characters", "n", "what"], rows).splitlines() == [
        "a name of 24 characters   n", "-" * 38, "a                         1", "    many words that go on and on, more",
        "    than fit", "b                        22"]


def test_names_are_shortened_before_numbers_are_lost(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    numbers = [str(10**k) for k in range(4, 8)]
    table = format_table(["", *(f"the number {k}" for k in range(4))], [["a name that is long", *numbers]])
    assert table.splitlines()[:3] == ["          the... 0  the... 1  the... 2", "-" * 38, "a n...ng     10000    100000   1000000"]
    first, second = format_table(["class", *(f"{k}" * 9 for k in range(6))], [["cat", *["123456789"] * 6]]).split("\n\n")
    assert [part.splitlines()[0].split() for part in (first, second)] == [["class", *(f"{k}" * 9 for k in some)]
                                                                      for some in (range(3), range(3, 6))]
    monkeypatch.setenv("COLUMNS", "60")
    lines = format_table(["is", *(f"a class that is called {k}" for k in range(9))], [["0", *["1234"] * 9]]).splitlines()
    assert [name[-1] for name in lines[0].split("  ")[1:]] == list("012345678")      # they still differ


def test_every_line_of_every_command_fits(columns, tmp_path, monkeypatch, capsys):
    """Of what people read; ten classes have long names."""
    monkeypatch.chdir(tmp_path)
    rng, classes = np.random.default_rng(0), [f"a class with a long name, number {k}" for k in range(10)]
    labels = np.array([0] * 5 + list(range(10)) * 3)        # unbalanced, which is worth a hint
    some = Dataset(rng.integers(0, 256, (35, 3, 32, 32), dtype=np.uint8), labels, classes, "shapes")
    monkeypatch.setattr(choice, "shapes", lambda: (some, some))
    fast = ["--batch-size", "32", "--lr", "0"]
    commands = [["train", *fast, "--epochs", "1", "--profile", "--model", "cifar10_quick_relu"],
                ["train", *fast, "--epochs", "11", "--val-share", "0.4", "--out", "run"],
                ["train", "--init-from", "latest", "--epochs", "1", "--out", "other"], ["evaluate", "--checkpoint", "latest"],
                ["evaluate", "--checkpoint", "latest", "--json"], ["cache"],
                *([command, option] for command in ("train", "evaluate") for option in ("--list-datasets", "--help")),
                ["data", "list"], ["data", "show", "shapes"],
                ["train", "--list-models"], *([command, "--help"] for command in ("predict", "cache", "data")), ["--help"]]
    for argv in commands:
        try:
            assert __main__.main(argv) == 0
        except SystemExit as end:
            assert end.code == 0
        out = capsys.readouterr().out
        if "--json" in argv:
            assert [entry["class"] for entry in json.loads(out)["classes"]] == classes and out.count("\n") == 1
        else:
            assert out and max(map(len, out.splitlines())) <= columns, argv


def test_what_python_prints_fits(columns):
    model = nbcnn.models.cifar10_quick_relu(classes=[f"a class with a long name, number {k}" for k in range(10)])
    assert "\nconv2     Conv2d(32, 32, 5, padding=2)  " in model.summary()
    for text in (model.summary(), str(nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()))):
        assert max(map(len, text.splitlines())) <= columns
    row = {"epoch": 999, "train_loss": 0.12345, "val_loss": 12.345, "val_accuracy": 1.0, "test_loss": 0.5, "test_accuracy": 0.5,
           "lr": 0.01, "images_per_second": 123456.7, "seconds": 1234.5}
    state = SimpleNamespace(history=[row], epochs=1000, progress=SimpleNamespace(best_epoch=999, epoch=999))
    assert epoch_line(state, lambda text: f"<{text}>") == {     # what is left out is in metrics.csv
        80: "epoch  999/1000  train 0.1235  val 12.3450  <100.00%>  test 0.5000  50.00%",
        120: "epoch  999/1000  train 0.1235  val 12.3450  <acc 100.00%>  test 0.5000  acc 50.00%  lr 1.00e-02  123,457/s  1234.5 s",
    }[columns]


def test_summaries_and_evaluations():
    model = nbcnn.Sequential([(name, nbcnn.Linear(4, 4)) for name in HOSTILE[:2]], input_shape=(4,))
    confusion = nbcnn.evaluation.Evaluation(0.5, np.eye(2, dtype=np.int64), HOSTILE[2:4])
    for text in (model.summary(), str(confusion), str(nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()))):
        assert not set(text) & (FORBIDDEN - {"\n"})
    assert len(model.summary().splitlines()) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file system that takes any character")
def test_no_command_prints_names_as_they_are(tmp_path, monkeypatch):
    """Classes, layers, files and folders, in all that train, --resume, predict and evaluate say; each line is decodable."""
    monkeypatch.chdir(tmp_path)
    data = f"data{HOSTILE[0]}{HOSTILE[3]}"
    for split in ("train", "test"):
        for k, name in enumerate(HOSTILE):
            os.makedirs(os.path.join(data, split, name))
            for j in range(2):
                Image.new("RGB", (8, 8), (30 * k, 0, 100 * j)).save(os.path.join(data, split, name, f"x{j}{name}.png"))
    (tmp_path / "net.py").write_text("""
import nbcnn
def make(classes, input_shape):
    return nbcnn.Sequential([("a\\x1b[2J", nbcnn.Flatten()), ("x\\u009b31m", nbcnn.Linear(192, len(classes)))])
""")
    out = f"run{HOSTILE[3]}"
    last, odd = os.path.join(out, "last.safetensors"), os.fsdecode(b"\xff\x9b.png")
    Image.new("RGB", (8, 8)).save("odd.png")
    os.rename("odd.png", odd)
    bad = os.path.join(data, f"bad{HOSTILE[1]}.png")
    open(bad, "w").close()
    test = os.path.join(data, "test", HOSTILE[0])
    commands = [
        ["train", "--dataset", "folder", "--data-dir", data, "--size", "8", "--model", "net.py:make", "--epochs", "1", "--out", out,
         "--schedule", "constant"],
        ["train", "--resume", last, "--epochs", "2"],
        ["predict", test, odd, bad, "--top", "9", "--checkpoint", last], ["predict", test, odd, "--json", "--checkpoint", last],
        ["evaluate", "--checkpoint", last], ["evaluate", "--checkpoint", last, "--json"]]
    # One process, as most of what it takes is importing.
    code = f"""
from nbcnn.__main__ import main
for argv in {commands!r}:
    print("====", flush=True)
    print("status", main(argv), flush=True)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    parts = done.stdout.split(b"====\n")[1:]
    assert [part.splitlines()[-1] for part in parts] == [b"status 0", b"status 0", b"status 1", *[b"status 0"] * 3], done.stderr
    for part in (*parts, done.stderr):
        assert not set(part.decode("utf-8", "surrogateescape")) & (FORBIDDEN - {"\t", "\n"})
    assert br"\x1b]0;owned\x07" in parts[0] and br"x\x9b31m" in parts[1]
    assert parts[2].count(b"\n") == 4 and parts[2].count(b"\t") == 3
    assert b"\xff\\udc9b.png\t" in parts[2] and rb"bad\x9b31mred.png: not an image" in done.stderr
    for part in (parts[3], parts[5]):
        found = [json.loads(line) for line in part.splitlines()[:-1]]
        assert {entry["class"] for entry in found[0]["classes"]} <= set(HOSTILE)
    assert parts[4].decode().startswith(printable(last))
