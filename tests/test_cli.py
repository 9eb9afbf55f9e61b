"""What the commands share: options and configuration files, colours, messages, exit statuses, and the command that picks them."""
import io
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata

import pytest

from nbcnn import __main__, cli, evaluate, predict, train
from nbcnn.datasets import DATASETS
from nbcnn.models import MODELS


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parser():
    parser = cli.Parser("nbcnn test", "A test.", "  nbcnn test", "0")
    parser.add("--batch-size", "size", type=cli.whole(1))
    parser.add("--lr", "rate", type=cli.number())
    parser.add("--model", "name")
    parser.add("--augment", "yes or no", action=cli.argparse.BooleanOptionalAction)
    parser.add("--quiet", "silent", action="store_true")
    parser.add("file", "files", nargs="*")
    parser.add_config()
    parser.add_lists(models=lambda: "one, two")
    return parser


def config(text):
    with open("run.toml", "w") as file:
        file.write(text)
    return ["--config", "run.toml"]


# ---- options ----

def test_only_what_is_given_is_there(parser):
    assert parser.options([]) == {}
    assert parser.options(["a", "--lr", "0.5", "--no-augment", "b"]) == {"lr": 0.5, "augment": False, "file": ["a", "b"]}


@pytest.mark.parametrize("argv, message", [
    (["--lr", "-1"], "--lr: expected a number of at least 0, got '-1'"),
    (["--batch-size", "0"], "whole number of at least 1, got '0'"),
    (["--batch-siz", "1"], "unrecognized arguments: --batch-siz.*did you mean --batch-size?"),
    (["--l", "1"], "unrecognized arguments"),
    (["--modl=x"], "did you mean --model?"), (["--lr"], "expected one argument"),
])
def test_bad_options_name_the_nearest(parser, argv, message):
    with pytest.raises(ValueError, match=message):
        parser.options(argv)


# ---- configuration files ----

def test_a_configuration_file_holds_options_by_their_names_and_flags_win(parser):
    file = config('batch-size = 32\nlr = 1e-2\nmodel = "-odd name"\naugment = false\nquiet = true\n')
    assert parser.options(file) == {"batch_size": 32, "lr": 0.01, "model": "-odd name", "augment": False, "quiet": True}
    assert parser.options(["--lr", "0.5", *file, "--augment", "x"]) == {
        "batch_size": 32, "lr": 0.5, "model": "-odd name", "augment": True, "quiet": True, "file": ["x"]}
    assert parser.options(config("lr = 3\naugment = true\nquiet = false")) == {"lr": 3, "augment": True}
    assert parser.options(config("")) == {}


@pytest.mark.parametrize("text, message", [
    ("batchsize = 3", "run.toml: unknown key 'batchsize'; did you mean batch-size?"),
    ("batch_size = 3", "run.toml: unknown key 'batch_size'; did you mean batch-size?"),
    ("zzz = 3", "run.toml: unknown key 'zzz'"), ("file = 'a'", "unknown key 'file'"), ("config = 'a'", "unknown key 'config'"),
    ("help = true", "unknown key 'help'"), ("no-augment = true", "unknown key 'no-augment'; did you mean augment?"),
    ("list-models = true", "unknown key 'list-models'"),
    ("lr = -1", "run.toml: argument --lr: expected a number of at least 0, got '-1'"),
    ("lr = 'fast'", "run.toml: argument --lr"), ("lr = true", "run.toml: lr: expected a string or a number, got True"),
    ("lr = [1, 2]", r"lr: expected a string or a number, got \[1, 2\]"), ("[lr]\na = 1", "lr: expected a string or a number"),
    ("augment = 1", "run.toml: augment: expected true or false, got 1"),
    ("quiet = 'yes'", "quiet: expected true or false, got 'yes'"),
    ("lr = ", "run.toml: not a TOML file: "), ("lr = 1\nlr = 2", "run.toml: not a TOML file"),
])
def test_a_bad_configuration_file_names_file_and_key(parser, text, message):
    with pytest.raises(ValueError, match=message):
        parser.options(config(text))


def test_a_file_that_is_no_text_or_not_there(parser, folder):
    (folder / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run\.toml: not a TOML file"):
        parser.options(["--config", "run.toml"])
    with pytest.raises(FileNotFoundError):
        parser.options(["--config", "nowhere.toml"])


def test_without_a_toml_library_it_says_what_to_install(parser, monkeypatch):
    file = config("lr = 1")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ImportError, match=r"--config needs Python 3\.11 or newer, .*python -m pip install tomli"):
        parser.options(file)


def test_config_without_an_installed_library_is_one_line_and_2(capsys, monkeypatch):
    config("lr = 1")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert train.main(["--config", "run.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- colours ----

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.paint("a", "bold", Terminal()) == "\033[1ma\033[0m"
    assert cli.paint("a", "bold", io.StringIO()) == "a"
    monkeypatch.setenv("NO_COLOR", "")      # https://no-color.org: present and not empty
    assert cli.paint("a", "red", Terminal()) == "\033[1;31ma\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.paint("a", "red", Terminal()) == "a"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert cli.paint("a", "red", Terminal()) == "a"


# ---- exit statuses ----

@pytest.mark.parametrize("error, line, status", [
    (ValueError("a\nb"), "nbcnn test: a b\n", 2), (ImportError("install it"), "nbcnn test: install it\n", 2),
    (FileNotFoundError(2, "No such file or directory", "x"), "nbcnn test: x: No such file or directory\n", 2),
    (OSError("odd"), "nbcnn test: odd\n", 2), (MemoryError(), "nbcnn test: out of memory\n", 2), (KeyboardInterrupt(), "", 130),
])
def test_what_goes_wrong_is_one_line_and_a_status(capsys, error, line, status):
    def command(argv):
        raise error
    assert cli.run("nbcnn test", command, []) == status
    assert capsys.readouterr() == ("", line)


def test_a_fault_of_ours_is_not_hidden():
    def command(argv):
        raise TypeError
    with pytest.raises(TypeError):
        cli.run("nbcnn test", command, [])


# ---- the command nbcnn ----

@pytest.mark.parametrize("argv, message", [
    ([], "expected a command: train, predict, evaluate"), (["trian"], "unknown command 'trian'.*did you mean train?"),
    (["--versoin"], "did you mean --version?"), (["zzz"], "expected one of train, predict, evaluate"),
])
def test_an_unknown_command(capsys, argv, message):
    assert __main__.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("nbcnn: ") and re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize("name, module", [("train", train), ("predict", predict), ("evaluate", evaluate)])
def test_commands_are_the_modules(name, module, monkeypatch, capsys):
    got = []
    monkeypatch.setattr(module, "main", lambda argv: got.append(argv) or 7)
    assert __main__.main([name, "a", "--b"]) == 7 and got == [["a", "--b"]]
    assert name in __main__.COMMANDS and len(__main__.COMMANDS) == 3


@pytest.mark.parametrize("argv", [[], ["train"], ["predict"], ["evaluate"]])
def test_help_has_examples_statuses_and_defaults(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main([*argv, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and (not argv or "(default: cpu)" in " ".join(text.split()))
    assert text.startswith(f"usage: {' '.join(['nbcnn', *argv])} ")
    assert "\nexamples:\n  nbcnn " in text and "\nexit status: 0 done" in text


@pytest.mark.parametrize("module", [train, predict, evaluate])
def test_every_example_is_one_that_the_parser_takes(module):
    parser = module._parser()
    config("lr = 1")
    lines = [line.split("   ")[0] for line in parser.epilog.splitlines() if line.startswith("  nbcnn") or "| nbcnn" in line]
    assert len(lines) >= 3
    for line in lines:
        command = shlex.split(line.split("| ")[-1])
        assert command[:2] == parser.prog.split()
        assert parser.parse_args(command[2:])


@pytest.mark.parametrize("argv", [[], ["train"]])
def test_lists(argv, capsys):
    for option, names in (("--list-models", MODELS), ("--list-datasets", DATASETS)):
        with pytest.raises(SystemExit) as caught:
            __main__.main([*argv, option])
        out = capsys.readouterr().out
        assert caught.value.code == 0 and all(f"\n{name} " in out for name in names)
    assert set(DATASETS) == set(train.EPOCHS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--version"])
    import nbcnn
    assert capsys.readouterr().out == f"nbcnn {nbcnn.__version__}\n"


def test_the_console_script_is_this_command():
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "nbcnn"]
    assert entry.load() is __main__.main


def test_as_a_process():
    """-m with and without the sub-command's module, and what is written to something that is no terminal has no escapes."""
    for command in (["nbcnn", "evaluate"], ["nbcnn.evaluate"], ["nbcnn", "predict"], ["nbcnn.predict"]):
        pictures = ["a.png"] if "predict" in command[-1] else []
        done = subprocess.run([sys.executable, "-m", *command, "--checkpoint", "nowhere", *pictures], capture_output=True,
                              text=True, env={**os.environ, "TERM": "xterm"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"nbcnn {command[-1].split('.')[-1]}: nowhere: No such file or directory\n"
