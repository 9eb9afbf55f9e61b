"""Configuration files with lines changed, given to all three commands: one line says what is wrong, and the status is 2."""
import contextlib
import io
import os
import tempfile
from pathlib import Path

from nbcnn import predict, train
from nbcnn.evaluate import __main__ as evaluate

from campaign.harness import GIB, outcomes, survey

COMMANDS = [        # (command, lines of its configuration, other arguments); what is not there ends what nothing else has ended
    (train, b"""recipe = "default"
dataset = "folder"
data-dir = "nowhere"
size = 8
model = "cifar10_quick"
epochs = 3
batch-size = 32
lr = 0.01
nesterov = true
augment = false
quiet = true
save-every = 1
loss = "cross_entropy"
schedule = "cosine"
momentum = 0.9""".split(b"\n"), []),
    (predict, [b"top = 3", b"json = true", b'checkpoint = "nowhere"', b"threads = 1"], ["image.png"]),
    (evaluate, [b'checkpoint = "nowhere"', b"batch-size = 8", b'split = "test"', b"json = false"], []),
]
VALUES = [
    b'"x"', b'""', b"true", b"nan", b"inf", b"-inf", b"-1", b"0", b"3.0", b"1e400", b"1e39", b"9" * 20, b"9" * 41, b"9" * 5000,
    b"0x10", b"0x" + b"f" * 4000, b"-0x" + b"f" * 4000, b"[0x" + b"f" * 4000 + b"]", b"[]", b"{}", b"[1, 2]",
    b"1979-05-27", b"1979-05-27T07:32:00Z", b"07:32:00", b'"\\u0000"', b'"a\\u0000b"', b'"""a\nb"""', b'"--help"', b'"-1"', b'"--"',
    b'"\x1b[31m"', b'"\\u001b[31m"', b'"\\ud800"', b'"a=b"', b'"=%s%(x)s"', b"'%'", '"\u0663"'.encode(), b'"\xff"', b"\0",
    b"[" * 2000 + b"]" * 2000, b"[" * 200 + b"]" * 200, b"{a=" * 300 + b"1" + b"}" * 300, b"{a" + b".a" * 3000 + b" = 1}",
    b'"' + b"y" * 7000 + b'"', b'"' + b"y" * 100_000 + b'"',
]
KEYS = [
    b"help", b"config", b"version", b"out", b"resume", b"list-models", b"checkpoint", b"picture", b"no-augment", b"batch_size",
    b"h", b"__class__", b'"a b"', b'"\\n"', b'"\\u0000"', b'""', b"a.b", b"lr.a", b"lr" + b".a" * 500, b"y" * 5000, b"threads",
    b"device", b"profile", b"label-smoothing", b"top", b"json", b"split", b"seed", b"weight-decay",
]


def mutated(lines, rng):
    lines = list(lines)
    for _ in range(rng.choice([1, 1, 2, 4])):
        k, kind = rng.randrange(len(lines)), rng.randrange(20)
        if kind < 10:
            lines[k] = lines[k].split(b"=")[0] + b"= " + rng.choice(VALUES)
        elif kind < 14:
            lines.insert(k, rng.choice(KEYS) + b" = " + rng.choice(VALUES))
        elif kind < 17:
            line = bytearray(lines[k])
            line[rng.randrange(len(line))] = rng.randrange(256)
            lines[k] = bytes(line)
        elif kind == 17:
            lines.insert(k, rng.choice(lines))
        elif kind == 18:
            lines.insert(k, b"[" + rng.choice(KEYS) + b"]")
        else:
            lines[0] = rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"#"]) + lines[0]
    return b"\n".join(lines)


def prepare():
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    return Path(folder) / "run.toml"


def case(path, rng):
    command, lines, arguments = rng.choice(COMMANDS)
    path.write_bytes(mutated(lines, rng))

    def attempt():
        output, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            status = command.main(["--config", path.name, *arguments])
        line = error.getvalue()
        assert (status, output.getvalue()) == (2, "") and line.endswith("\n") and line[:-1].isprintable(), (status, line)
        assert len(line) < 2100, line
        return line
    return command.__name__, attempt


def test_a_changed_configuration_is_refused_in_one_line(full, seed):
    records = survey(__name__, 100_000 if full else 300, seed)
    assert not [record for record in records if record["outcome"] != "ok"], outcomes(records)
    assert max(record["seconds"] for record in records) < 2
    assert max(record["bytes"] for record in records) < GIB
