"""Names from files leave a terminal as it is, wherever they are printed."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import nbcnn
from nbcnn.table import format_table, printable

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
