"""What the commands share: options, configuration files, devices, messages and exit statuses."""
import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import numba
import numpy as np

from nbcnn import checkpoint, interrupts, models
from nbcnn.datasets import DATASETS
from nbcnn.files import about, naming, require_file, said
from nbcnn.instead import nearest
from nbcnn.kernels.arguments import INT64, LARGEST, MOST
from nbcnn.kernels.backend import load_backend
from nbcnn.kernels.shown import shown
from nbcnn.losses import LOSSES
from nbcnn.memory import set_max_memory
from nbcnn.model import MissingLayer
from nbcnn.precision import PRECISIONS, why_not_bfloat16
from nbcnn.precision_trial import choose_precision
from nbcnn.table import fill, format_table, printable, width
from nbcnn.views import VIEWS

COLOURS = {"bold": "1", "red": "1;31", "yellow": "33"}
DEVICES = ["cpu", "cuda", "auto"]
COMPLETING = "_ARGCOMPLETE"     # the variable that is set where a shell asks what may come next
LONGEST_LINE = 2000             # characters of a message, which may quote a text of any length
LONGEST_CONFIG = 8000           # bytes of a configuration file: the time to read a dotted key grows with the square of its length
DIGITS = 40                     # of a whole number: a seed of 128 bits takes 39
TRIED = {       # names that options have in scripts for PyTorch, and what there is here
    "adagrad adam adamw opt optim rmsprop sgd": "it is --optimizer sgd, adam or adamw",
    "cosine gamma lr-decay lr-policy lr-schedule lr-scheduler milestones one-cycle sched scheduler step-size warmup":
        "--schedule constant, step, cosine, one_cycle, multistep or triangle changes the rate",
    "clip clip-grad grad-clip max-grad-norm": "it is --clip-norm", "early-stop early-stopping": "it is --patience",
    "tta": "it is --views", "lr-finder lr-find": "it is --find-lr", "model-ema": "it is --ema", "hflip": "it is --flip",
    "pad padding crop": "it is --shift", "dropout": "it is a layer, nbcnn.Dropout, of a --model of your own",
    "l2 wd": "it is --weight-decay", "learning-rate": "it is --lr", "b batch bs": "it is --batch-size",
    "criterion loss-fn": "it is --loss", "a arch net network": "it is --model",
    "cuda gpu gpus no-cuda use-cuda": "it is --device cpu, cuda or auto",
    "j num-workers workers": "images are held in memory, without workers; --threads sets how many threads compute",
    "data data-path dataroot root": "it is --data-dir", "output output-dir save save-dir": "it is --out",
    "image-size img-size imgsz resize": "it is --size", "gray grayscale grey in-channels": "it is --channels",
    "fine-tune finetune load pretrained weights": "it is --init-from CHECKPOINT",
    "ckpt load-model model-path": "it is --checkpoint",
}
USED = {        # what commands use of a checkpoint's options, and the values allowed: anybody may have written the file
    "loss": lambda value: value in list(LOSSES),
    "label_smoothing": lambda value: isinstance(value, int | float) and 0 <= value <= 1,
    "dataset": lambda value: value in list(DATASETS),
    "data_dir": lambda value: isinstance(value, str),
    "val_share": lambda value: isinstance(value, int | float) and 0 <= value <= 0.9,
    "seed": lambda value: type(value) is int and value >= 0,
}


def run(name, command, argv):
    """Run command(argv) and return its exit status; every message begins with `name`, "nbcnn train" for instance.

    The status is what the command returns, 2 where it raises an error about what it was given, 130 after Ctrl-C, and 141 when
    nobody reads the output any more. An `argv` of None stands for the arguments of the process.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:        # the process was started with it closed
            setattr(sys, stream, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):      # a file's name may hold bytes that are no text
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    if ends := signal.getsignal(signal.SIGINT) is interrupts.end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: remark(name, message, "yellow")
            warnings.filterwarnings("ignore", module=r"PIL\.")      # about files that it can read nevertheless
            return command(sys.argv[1:] if argv is None else argv)
    except (ValueError, ImportError, MemoryError) as error:
        return fail(name, error if str(error) else "out of memory")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:         # only a print raises it
        return 141          # 128 + SIGPIPE, which not every system has
    except OSError as error:
        return fail(name, said(error))
    finally:
        set_max_memory(None)        # the command may have set it
        if ends:
            signal.signal(signal.SIGINT, interrupts.end)


def fail(name, message, status=2):
    """Say in one line what is wrong, and return the exit status."""
    remark(name, message, "red")
    return status


def remark(name, message, colour):
    """Write one line to standard error."""
    line = printable(" ".join(str(message).split()))
    if len(line) > LONGEST_LINE:
        line = f"{line[:LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2:]}"
    with contextlib.suppress(OSError):      # the exit status still says it
        print(paint(f"{name}:", colour, sys.stderr), line, file=sys.stderr, flush=True)


def put(text, end="\n"):
    """Print a text as it is. It must hold no names from files: see `say`."""
    with naming("standard output"):
        print(text, end=end, flush=True)


def say(*lines, end="\n"):
    """Print lines as `printable` makes them: they may hold names from files."""
    put("\n".join(map(printable, lines)), end)


def tell(text, indent=0, command=""):
    """Print a text as `say` does, in several lines where it is too long for one, all but the first indented.

    A command that follows it stays whole, however long it is: it is to be copied.
    """
    *lines, last = fill(printable(text), indent)
    joined = f"{last} {command}".rstrip()
    say(*lines, *([joined] if not command or len(joined) <= width() else [last, " " * indent + command]))


def paint(text, colour, stream):
    """The text in a colour where the stream is a terminal that wants colours: https://no-color.org."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def meant(name, known):
    """A hint at the option that was probably meant, in any spelling; "" where there is none. All names may be without --."""
    plain, there = name.lstrip("-").replace("_", "-").lower(), {option.lstrip("-") for option in known}
    text = next((text for names, text in TRIED.items() if plain in names.split()), "")
    return f"; {text}" if text and set(re.findall(r"--([a-z-]+)", text)) <= there else nearest(name, known)


class Parser(argparse.ArgumentParser):
    """A parser that leaves out options not given, and raises ValueError instead of ending the process.

    `status` says what the exit status means.
    """

    def __init__(self, name, description, examples, status, usage=None):
        self.names = {}             # the actions of the options that a configuration file may hold
        self.positional = None      # the name of arguments without --
        super().__init__(prog=name, usage=usage, argument_default=argparse.SUPPRESS, allow_abbrev=False,
                         description="\n".join("\n".join(fill(line)) for line in description.split("\n")),
                         formatter_class=argparse.RawDescriptionHelpFormatter,
                         epilog="\n".join([f"examples:\n{examples}\n", *fill(f"exit status: {status}"), ""]))
        self.register("type", None, text)

    def add(self, name, text, **arguments):
        """Add an option or an argument and its help."""
        action = self.add_argument(name, help=text.replace("%", "%%"), **arguments)
        if name[:2] == "--":
            self.names[name[2:]] = action
        else:
            self.positional = name

    def add_checkpoint(self):
        self.add("--checkpoint", "file that training or nbcnn.save wrote; it holds the network, its classes and all else needed. "
                                 "Or a folder with best.safetensors, or latest: the newest in runs/", metavar="FILE")
        self.add_argument("--model", metavar="FILE.py", help="Python file, or module, that defines layers of your own which the "
                                                             "checkpoint has; it is run. No --config can hold this")

    def add_views(self):
        self.add("--views", "over how many views of an image to average: 1, itself; 2, its mirror image too; 6, both of them moved "
                            "by a pixel, too (default: 1)", type=whole(1), choices=list(VIEWS))

    def add_precision(self, more=""):
        self.add("--precision", "what activations are stored and multiplied in: f32; bf16, where the processor has a unit for it; "
                                f"auto: the one that is faster in a few trials{more}", choices=[*PRECISIONS, "auto"])

    def add_max_pixels(self):
        self.add("--max-pixels", "how many pixels a file may have; each takes 4 to 16 bytes of memory (default: 110 million; TIFF "
                                 "80, WEBP and AVIF 50)", type=whole(1), metavar="N")

    def add_skip_broken(self):
        self.add("--skip-broken", "leave out files of --dataset folder that cannot be read, and list them",
                 action=argparse.BooleanOptionalAction)

    def add_config(self):
        self.add_argument("--config", metavar="FILE", help="TOML file with options by their names, as batch-size = 32; those given "
                                                           "on the command line win")

    def add_lists(self, **lists):
        """Add --list-models and others: functions that give the text."""
        for name, text in {**lists, "datasets": list_datasets}.items():
            self.add_argument(f"--list-{name}", action=Listing, nargs=0, const=text,
                              help=f"print the {name} known by name, and end")

    def add_device(self, text, memory="half of what there is"):
        self.add("--device", f"{text}; auto: a GPU that CUDA can use, else the CPU (default: cpu)", choices=DEVICES)
        self.add("--threads", "threads of the CPU (default: all cores)", type=whole(1), metavar="N")
        self.add("--max-memory", "how much memory the network's buffers may take on the CPU: bytes, or 500M, 2G, ... (default: "
                                 f"{memory})", type=memory_size, metavar="SIZE")

    def print_help(self, file=None):        # argparse's own ignores that the text cannot be written
        put(self.format_help(), end="")

    def error(self, message):       # argparse's own prints three lines and ends the process
        raise ValueError(f"{message} (--help lists the options)")

    def options(self, argv):
        """The options given, by name: those of the command line, and the others of the --config file."""
        if COMPLETING in os.environ:
            importlib.import_module("argcomplete").autocomplete(self)       # ends the process
        end = argv.index("--") if "--" in argv and self.positional else len(argv)
        given, unknown = self.parse_known_intermixed_args(argv[:end])       # so that arguments may stand between options
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [string for action in self._actions for string in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant(name, known) if name[:1] == '-' else ''}")
        given = self._values(given)
        if argv[end + 1:]:          # what follows -- is no option
            given[self.positional] = given.get(self.positional, []) + argv[end + 1:]
        path = given.pop("config", None)
        return {**self._configured(path), **given} if path is not None else given

    def _values(self, parsed):
        """What argparse has found, by name."""
        for name, value in vars(parsed).items():
            if value == [] and name != self.positional:     # before Python 3.13, for an option whose value is --
                self.error(f"argument {flag(name)}: expected one argument, got '--'")
        return vars(parsed)

    def _configured(self, path):
        """The options in a TOML file."""
        try:
            toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        except ImportError:
            raise ImportError("--config needs Python 3.11 or newer, or the extra config: python -m pip install tomli") from None
        require_file(path)
        with open(path, "rb") as file:
            content = file.read(LONGEST_CONFIG + 1)
        if len(content) > LONGEST_CONFIG:
            raise ValueError(f"{path}: expected a TOML file with options, of at most {LONGEST_CONFIG} bytes, got more")
        try:
            with about(f"{path}: not a TOML file"):
                table = toml.loads(content.decode("utf-8-sig"))
        except RecursionError:
            raise ValueError(f"{path}: expected options as key = value, got values nested too deeply to be read") from None
        with about(path):
            return self._values(self.parse_args([argument for item in table.items() for argument in self._arguments(*item)]))

    def _arguments(self, key, value):
        """A key of a TOML file and its value, as arguments of the command line."""
        if key not in self.names:
            raise ValueError(f"unknown key {shown(key)}{meant(key, self.names)}")
        if self.names[key].nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{key}: expected true or false, got {shown(value)}")
            option = f"--{key}" if value else f"--no-{key}"
            return [option] if option in self.names[key].option_strings else []
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{key}: expected a string or a number, got {shown(value)}")
        if isinstance(value, int) and abs(value) >= 10**DIGITS:       # Python may refuse to write it
            raise ValueError(f"{key}: expected at most {DIGITS} digits, got more")
        return [f"--{key}={value}"]


def list_models():
    """A table of the networks that --model knows by name."""
    rows = [[name, f"{sum(parameter.size for parameter in make().parameters()):,}", make.__doc__.splitlines()[0].replace("`", "")]
            for name, make in models.MODELS.items()]
    return format_table(["model", "parameters", ""], rows) + "\n\nOr yours: module:function or FILE.py:function"


def list_datasets():
    """A table of the data sets that --dataset knows."""
    return format_table(["dataset", ""], [[name, text] for name, text in DATASETS.items()])


class Listing(argparse.Action):
    """An option without a value (`nargs` 0) that prints what the function `const` gives, and ends the process."""

    def __call__(self, parser, *rest):
        say(*self.const().split("\n"))
        parser.exit()


def flag(name):
    """The option of a value: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def whole(minimum, maximum=MOST):
    """The type of options that are whole numbers from `minimum` to `maximum`."""
    def parse(text):
        if len(text) > DIGITS:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {DIGITS} digits, got {shown(text)}")
        value = _parsed(int, text)
        if value is None or not minimum <= value <= maximum:
            bound = f"at least {minimum}" if value is None or value < minimum else f"at most {maximum}"
            raise argparse.ArgumentTypeError(f"expected a whole number of {bound}, got {shown(text)}")
        return value
    return parse


def memory_size(text):
    """The type of --max-memory: a number of bytes, or of the units K, M, G and T of 1024 bytes and its powers."""
    match = re.fullmatch(r"(\d{1,19})([KMGT]?)", text.upper(), re.ASCII)
    size = int(match[1]) * 1024 ** " KMGT".index(match[2] or " ") if match else 0
    if not 0 < size <= INT64:
        raise argparse.ArgumentTypeError(f"expected a number of bytes, or one like 500M or 2G, got {shown(text)}")
    return size


def number(maximum=LARGEST):
    """The type of options that are numbers from 0 to `maximum`."""
    def parse(text):
        value = _parsed(float, text)
        if value is None or not 0 <= value <= maximum:
            raise argparse.ArgumentTypeError(f"expected a number from 0 to {maximum:.2g}, got {shown(text)}")
        return value
    return parse


def positive(maximum=LARGEST):
    """The type of options that are numbers above 0, to `maximum`."""
    def parse(text):
        value = number(maximum)(text)
        if not value:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {shown(text)}")
        return value
    return parse


def epochs(text):
    """The type of --epochs: a number above 0, an int where it is whole."""
    value = positive(MOST)(text)
    return int(value) if value == int(value) else value


def flip(text):
    """The type of --flip: the text itself, where it is a probability or alternate."""
    if text != "alternate":
        number(1)(text)
    return text


def frozen_after(text):
    """What --freeze says, NAME:EPOCHS or several with commas between: the number of epochs by the name."""
    found = {}
    for entry in text.split(","):
        name, colon, count = entry.rpartition(":")
        if not (name and colon):
            raise argparse.ArgumentTypeError(f"expected NAME:EPOCHS, as conv1.bias:3, got {shown(text)}")
        found[name] = whole(0)(count)
    return found


def freeze(text):
    """The type of --freeze: the text itself, where it says something."""
    frozen_after(text)
    return text


def _parsed(kind, text):
    """A number, an int or a float, in ASCII; None where the text is none."""
    with contextlib.suppress(ValueError):
        return kind(text) if text.isascii() else None


def text(value):
    """The type of all other options: text that may be part of a path."""
    if "\0" in value:
        raise argparse.ArgumentTypeError(f"expected text without NUL, got {shown(value)}")
    return value


def precision_of(options, model, batch_size, loss=None):
    """(precision, why) that --precision asks for; `why` is "" where it says so itself. ValueError where it cannot be had."""
    wanted = options.get("precision", "f32")
    if wanted == "auto":
        return choose_precision(model, batch_size, loss)
    if wanted == "bf16" and model.dtype != np.float32:
        return "f32", "the model's numbers are float64"
    if wanted == "bf16" and (reason := why_not_bfloat16(model)):
        raise ValueError(f"--precision bf16: {reason}; f32 runs everywhere, and auto takes it here")
    return wanted, ""


def precision_name(precision, model):
    """What a model's numbers are then: f64 for one in float64, whatever is asked for."""
    return "f64" if model.dtype != np.float32 else precision


def tried_precision(name, options, model, batch_size):
    """The precision that --precision asks for, for predictions; where it does not say so itself, that is said on standard error."""
    precision, why = precision_of(options, model, batch_size)
    if why:
        remark(name, f"--precision {options['precision']} takes {precision_name(precision, model)}: {why}", "yellow")
    return precision


def load_trained(options, memory=None):
    """How commands that use a trained network begin: with the Checkpoint asked for, its model on the device.

    Threads and memory are set as the options say. `memory` stands for --max-memory where that is not given.
    """
    device, _ = choose_device(options.get("device", "cpu"))
    set_threads(options.get("threads"))
    set_max_memory(options.get("max_memory", memory))
    if "checkpoint" not in options:
        raise ValueError("--checkpoint: expected a file that training or nbcnn.save wrote, a run's folder or latest, got none")
    options["checkpoint"] = checkpoint_file(options["checkpoint"])
    saved = load_checkpoint(options["checkpoint"], options.get("model"))
    saved.averaged()
    for name, fits in USED.items():
        if name in saved.options and not fits(saved.options[name]):
            raise ValueError(f"{options['checkpoint']}: written with an option that does not exist, "
                             f"{name} {shown(saved.options[name])}")
    saved.options.setdefault("loss", "cross_entropy")
    saved.model.to(device)
    return saved


def checkpoint_file(place, name="best.safetensors"):
    """The file that --checkpoint, --init-from or --resume means: `place`, or the one called `name` in it where it is a folder.

    "latest" stands for the folder in runs/ that holds the newest file of that name.
    """
    if place == "latest":
        found = [(file.stat().st_mtime_ns, str(file)) for file in Path("runs").glob(f"*/{name}")]
        if not found:
            raise FileNotFoundError(f"latest: expected a run in {Path('runs').resolve()} with {name}, got none")
        return max(found)[1]
    if os.path.isdir(place):
        there = sorted(file.name for file in Path(place).glob("*.safetensors"))
        if name not in there:
            raise FileNotFoundError(f"{place}: expected a folder with {name}, got one with {', '.join(there) or 'no checkpoint'}")
        return os.path.join(place, name)
    return place


def load_checkpoint(path, model=None):
    """The Checkpoint of a file. Where it has layers of the user's own, these are taken from `model`, the value of --model."""
    try:
        return checkpoint.load(path)
    except MissingLayer:
        if model is None or model in models.MODELS:
            raise
    with about(f"--model {model}"):
        try:
            return checkpoint.load(path, models.own_layers(model))
        except MissingLayer as error:
            raise ValueError(f"expected the file that defines the layers of {error}") from None


def make_loss(options, weights=None):
    """The loss that the options ask for, with weights of classes."""
    name, smoothing = options["loss"], options.get("label_smoothing", 0.0)
    return LOSSES[name](**({"label_smoothing": smoothing, "weight": weights} if name == "cross_entropy" else {}))


def choose_device(wanted):
    """(device, why): the device to compute on, and a text that describes it or says why it was chosen.

    The text is "" for the CPU where that was asked for.
    """
    if wanted == "cpu":
        return "cpu", ""
    if importlib.util.find_spec("numba_cuda") is None and wanted == "auto":     # before a second is spent on numba.cuda
        return "cpu", "numba-cuda, which a GPU needs, is not installed"
    try:
        backend = load_backend("cuda")
        reason = backend.unavailable()
    except ImportError as error:
        reason = str(error)
    if not reason:
        return "cuda", backend.describe()
    if wanted == "auto":
        return "cpu", f"no GPU can be used: {reason}"
    raise ValueError(f"--device cuda: no GPU can be used: {reason}")


def set_threads(count):
    """Compute with this number of threads; None stands for all cores."""
    if count is not None:
        if count > numba.config.NUMBA_NUM_THREADS:
            raise ValueError(f"--threads: expected at most {numba.config.NUMBA_NUM_THREADS}, got {count}")
        numba.set_num_threads(count)
