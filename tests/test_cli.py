"""What the commands share: options and configuration files, colours, messages, exit statuses, and the command that picks them."""
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from nbcnn import __main__, cache, cli, data, predict, recipes, train
from nbcnn.datasets import DATASETS
from nbcnn.evaluate import __main__ as evaluate
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
    parser.add("--size", "pixels", type=cli.whole(2, 65_535))
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
    (["--lr", "-1"], "--lr: expected a number from 0 to 3.4e\\+38, got '-1'"),
    (["--batch-size", "3000000000"], "whole number of at most 2147483647, got '3000000000'"),
    (["--batch-size", "0"], "whole number of at least 1, got '0'"),
    (["--batch-siz", "1"], "unrecognized arguments: --batch-siz.*did you mean --batch-size?"),
    (["--l", "1"], "unrecognized arguments"),
    (["--modl=x"], "did you mean --model?"), (["--lr"], "expected one argument"),
    (["--lr", "1e400"], r"--lr: expected a number from 0 to 3.4e\+38, got '1e400'"), (["--lr", "1e39"], "--lr.* got '1e39'"),
    (["--lr", "\u0663"], "--lr: expected a number"), (["--lr", "nan"], "--lr: expected a number"),
    (["--batch-size", "\uff11"], "--batch-size: expected a whole number of at least 1"),
    (["--size", "65536"], "--size: expected a whole number of at most 65535, got '65536'"),
    (["--batch-size", "9" * 400], r"--batch-size: expected a whole number of at most 40 digits, got '9{37}\.{3}9{38}' "),
    (["--batch-size", "9" * 5000], r"--batch-size: expected a whole number of at most 40 digits, got '9{37}\.{3}9{38}' "),
    (["--model", "a\0b"], r"--model: expected text without NUL, got 'a\\x00b'"), (["--config", "\0"], "--config: .* without NUL"),
    (["a\0"], "argument file: expected text without NUL"),
])
def test_bad_options_name_the_nearest(parser, argv, message):
    with pytest.raises(ValueError, match=message):
        parser.options(argv)


@pytest.mark.parametrize("name, hint", [
    ("-b", "it is --batch-size"), ("--bs", "it is --batch-size"), ("--learning_rate", "it is --lr"), ("--img-size", "it is --size"),
    ("--weights", r" \(--help"), ("--gpu", r" \(--help")])        # what they stand for is no option of this parser
def test_options_of_scripts_for_pytorch(parser, name, hint):
    with pytest.raises(ValueError, match=f"unrecognized arguments: {name}(; )?{hint}"):
        parser.options([name])


def test_every_name_of_such_options_is_none_here():
    known = {option.lstrip("-") for module in (train, predict, evaluate) for action in module._parser()._actions
             for option in action.option_strings}
    tried = " ".join(cli.TRIED).split()
    assert len(tried) == len(set(tried)) and not set(tried) & known
    assert set(re.findall("--([a-z-]+)", " ".join(cli.TRIED.values()))) <= known


# ---- configuration files ----

@pytest.mark.parametrize(("text", "size"), [("1", 1), ("500M", 500 * 2**20), ("2g", 2**31), ("1T", 2**40), ("64K", 2**16)])
def test_sizes_of_memory(text, size):
    assert cli.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "2GB", "G", " 1", "1 G", "\u0967", "9" * 5000, "9" * 18 + "T"])
def test_what_is_no_size_of_memory(text):
    with pytest.raises(cli.argparse.ArgumentTypeError, match="expected a number of bytes, or one like 500M or 2G, got"):
        cli.memory_size(text)


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
    ("learning_rate = 3", "run.toml: unknown key 'learning_rate'; it is --lr"),
    ("lr = -1", "run.toml: argument --lr: expected a number from 0 to 3.4e\\+38, got '-1'"),
    ("lr = 'fast'", "run.toml: argument --lr"), ("lr = true", "run.toml: lr: expected a string or a number, got True"),
    ("lr = [1, 2]", r"lr: expected a string or a number, got \[1, 2\]"), ("[lr]\na = 1", "lr: expected a string or a number"),
    ("augment = 1", "run.toml: augment: expected true or false, got 1"),
    ("quiet = 'yes'", "quiet: expected true or false, got 'yes'"),
    ("lr = ", "run.toml: not a TOML file: "), ("lr = 1\nlr = 2", "run.toml: not a TOML file"),
    (f"lr = {'[' * 2000}{']' * 2000}", "run.toml: expected options as key = value, got values nested too deeply"),
    (f"lr = {'{a=' * 1500}1{'}' * 1500}", "run.toml: .*nested too deeply"),
    (f"lr = {'[' * 100}{']' * 100}", r"run.toml: lr: expected a string or a number, got \[+\.\.\.\]+$"),
    (f"lr{'.a' * 3000} = 1", r"run.toml: lr: expected a string or a number, got (\{'a': )+\{\.\.\.\}+$|nested too deeply"),
    (f"lr = 0x{'f' * 4000}", "run.toml: lr: expected at most 40 digits, got more"),
    (f"lr = [0x{'f' * 4000}]", "run.toml: lr: expected a string or a number, got <list>"),
    (f"batch-size = {'9' * 41}", "run.toml: batch-size: expected at most 40 digits"),
    ("lr = 1979-05-27", r"run.toml: lr: expected a string or a number, got datetime.date\(1979, 5, 27\)"),
    ("lr = 1e400", "run.toml: argument --lr: expected a number .*, got 'inf'"), ("lr = nan", "run.toml: argument --lr"),
    ("quiet = [1]", "run.toml: quiet: expected true or false"), (f"{'y' * 5000} = 1", r"run.toml: unknown key 'y{37}\.{3}y{38}'$"),
    ('model = "a\\u0000b"', r"run.toml: argument --model: expected text without NUL, got 'a\\x00b'"),
    ('model = "\\ud800"', "run.toml: not a TOML file"), ("lr = '\u0663'", "run.toml: argument --lr: expected a number"),
    ("quiet = '--help'", "quiet: expected true or false, got '--help'"), ("lr = '--help'", "--lr: expected a number .*'--help'"),
    ("#" * 8001, "run.toml: expected a TOML file with options, of at most 8000 bytes, got more"),
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


def test_values_that_look_like_options_are_values(parser, capsys):
    assert parser.options(config("model = '--help'")) == {"model": "--help"} == parser.options(["--model=--help"])
    for argv in (["--model=--"], config("model = '--'")):
        try:
            assert parser.options(argv) == {"model": "--"}
        except ValueError as error:         # before Python 3.13
            assert str(error).removeprefix("run.toml: ").startswith("argument --model: expected one argument, got '--'")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("module", [train, predict, evaluate])
def test_what_is_no_file_or_has_no_end_is_one_line_and_2(module, capsys):
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    os.symlink("/dev/zero", "zero")
    with open("large", "wb") as file:
        file.truncate(10**8)
    for name, message in (("pipe", "not a regular file"), ("link", "not a regular file"), ("zero", "not a regular file"),
                          (".", "Is a directory"), ("large", "of at most 8000 bytes")):
        assert module.main(["--config", name]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f": {name}: " in error and message in error


def test_a_message_has_an_end(capsys):
    for argv in (["--data-dir", "y" * 10**6, "--dataset", "folder"], ["--" + "y" * 10**6], ["--recipe", "y" * 10**6]):
        assert train.main(argv) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and len(line) < 2100 and "y ... " in line


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

def named(error, file):
    error.filename = file
    return error


@pytest.mark.parametrize("error, line, status", [
    (ValueError("a\nb"), "nbcnn test: a b\n", 2), (ImportError("install it"), "nbcnn test: install it\n", 2),
    (FileNotFoundError(2, "No such file or directory", "x"), "nbcnn test: x: No such file or directory\n", 2),
    (OSError("odd"), "nbcnn test: odd\n", 2), (named(OSError("odd"), "x"), "nbcnn test: x: odd\n", 2),
    (named(OSError(5, "Input/output error"), b"x"), "nbcnn test: x: Input/output error\n", 2),
    (MemoryError(), "nbcnn test: out of memory\n", 2), (KeyboardInterrupt(), "", 130),
])
def test_what_goes_wrong_is_one_line_and_a_status(capsys, error, line, status):
    def command(argv):
        raise error
    assert cli.run("nbcnn test", command, []) == status
    assert capsys.readouterr() == ("", line)


def test_a_full_standard_output_is_named(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(sys, "stdout", Full())
    assert __main__.main(["train", "--list-models"]) == 2
    assert capsys.readouterr().err == "nbcnn train: standard output: No space left on device\n"


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


@pytest.mark.parametrize("name, module", [
    ("train", train), ("predict", predict), ("evaluate", evaluate), ("data", data), ("cache", cache)])
def test_commands_are_the_modules(name, module, monkeypatch, capsys):
    got = []
    monkeypatch.setattr(module, "main", lambda argv: got.append(argv) or 7)
    assert __main__.main([name, "a", "--b"]) == 7 and got == [["a", "--b"]]
    assert name in __main__.COMMANDS and len(__main__.COMMANDS) == 5


@pytest.mark.parametrize("line, expected", [
    ("nbcnn tr", ["train"]), ("nbcnn train --batch-s", ["--batch-size"]),
    ("nbcnn train --recipe ", ["default", "tutorial", "airbench94", "resnet20"]),
    ("nbcnn --com", ["--completion"]), ("nbcnn predict x --checkpoint net", ["network.safetensors"]),
])
def test_words_that_the_tab_key_adds(line, expected, tmp_path):
    """As a shell asks for them, by the protocol of argcomplete."""
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    (tmp_path / "network.safetensors").write_bytes(b"")
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"), "COMP_LINE": line,
             "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "nbcnn"], cwd=tmp_path, env={**os.environ, **asked}, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "words").read_text().replace("\013", " ").split() == expected, done.stderr


@pytest.mark.parametrize("installed", [True, False])
def test_completion_prints_what_a_shell_reads_or_what_to_install(installed, monkeypatch, capsys):
    if installed:
        argcomplete = pytest.importorskip("argcomplete", reason="argcomplete is not installed")
        with pytest.raises(SystemExit):
            __main__.main(["--completion"])
        assert capsys.readouterr().out == argcomplete.shellcode(["nbcnn"]) + "\n"
    else:
        monkeypatch.setitem(sys.modules, "argcomplete", None)
        assert __main__.main(["--completion"]) == 2
        assert capsys.readouterr().err == "nbcnn: --completion needs the extra completion: python -m pip install argcomplete\n"


@pytest.mark.parametrize("argv", [[], ["train"], ["predict"], ["evaluate"], ["cache"]])
def test_help_has_examples_statuses_and_defaults(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main([*argv, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and (argv in ([], ["cache"]) or "(default: cpu)" in " ".join(text.split()))
    assert text.startswith(f"usage: {' '.join(['nbcnn', *argv])} ")
    assert "\nexamples:\n  nbcnn " in text and "\nexit status: 0 done" in text


@pytest.mark.parametrize("module", [train, predict, evaluate, cache])
def test_every_example_is_one_that_the_parser_takes(module):
    parser = module._parser()
    config("lr = 1")
    lines = [line.split("   ")[0] for line in parser.epilog.splitlines() if line.startswith("  nbcnn") or "| nbcnn" in line]
    assert len(lines) >= (2 if module is cache else 3)
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
    assert set(DATASETS) == set(recipes.EPOCHS)


def test_a_warning_is_a_line(capsys):
    def command(argv):
        warnings.warn("the disk\x1b\nis full", RuntimeWarning, stacklevel=1)
        return 0
    before = warnings.showwarning
    assert cli.run("nbcnn test", command, []) == 0
    assert capsys.readouterr().err == "nbcnn test: the disk\\x1b is full\n" and warnings.showwarning is before


@pytest.mark.parametrize("found", ["amx", None, "an error"])
def test_version(capsys, monkeypatch, found):
    def unit():
        if found == "an error":
            raise ValueError(found)
        return found
    monkeypatch.setattr(__main__, "unit_in_use", unit)
    with pytest.raises(SystemExit):
        __main__.main(["--version"])
    import nbcnn
    assert capsys.readouterr().out == f"nbcnn {nbcnn.__version__}\nunit for bf16: {found or 'none'}\n"


def test_the_console_script_is_this_command():
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "nbcnn"]
    assert entry.load() is __main__.main


def test_as_a_process():
    """-m with and without the sub-command's module, and what is written to something that is no terminal has no escapes."""
    for command in (["nbcnn", "evaluate"], ["nbcnn.evaluate"], ["nbcnn", "predict"], ["nbcnn.predict"]):
        images = ["a.png"] if "predict" in command[-1] else []
        done = subprocess.run([sys.executable, "-m", *command, "--checkpoint", "nowhere", *images], capture_output=True,
                              text=True, env={**os.environ, "TERM": "xterm"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"nbcnn {command[-1].split('.')[-1]}: nowhere: No such file or directory\n"
