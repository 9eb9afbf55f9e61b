"""The command `nbcnn`, which is `python -m nbcnn` too: picks the sub-command."""
import importlib
import os
import sys

import nbcnn
from nbcnn import cli
from nbcnn.kernels.cpu.unit import unit_in_use

COMMANDS = {
    "train": "train a network, and keep what it learned",
    "predict": "say what is in images, with a trained network",
    "evaluate": "measure a trained network on labelled images",
    "data": "download data sets by name, and show what is in them",
    "cache": "show what is kept to save time, or remove it",
}


def main(argv=None):
    """Run a sub-command, and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if cli.COMPLETING in os.environ:
        argv = finished_words()
    if argv and argv[0] in COMMANDS:        # only its module is imported
        name = "evaluate.__main__" if argv[0] == "evaluate" else argv[0]
        return importlib.import_module(f"nbcnn.{name}").main(argv[1:])
    return cli.run("nbcnn", _main, argv)


def finished_words():
    """The arguments before the one that a shell wants completed. Those of a sub-command are completed by its own parser."""
    line = os.environ["COMP_LINE"][:int(os.environ["COMP_POINT"])]
    words = line.split()[1:None if line[-1:].isspace() else -1]
    if words and words[0] in COMMANDS:
        os.environ[cli.COMPLETING] = "2"        # which of the words is the name of the command
    return words


def completion():
    """What makes a shell ask."""
    try:
        import argcomplete
    except ImportError:
        raise ImportError("--completion needs the extra completion: python -m pip install argcomplete") from None
    return argcomplete.shellcode(["nbcnn"])


def version():
    """nbcnn's version, and what the processor has for bfloat16."""
    try:
        found = unit_in_use()
    except ValueError as error:
        found = str(error)
    return f"nbcnn {nbcnn.__version__}\nunit for bf16: {found or 'none'}"


def _main(argv):
    parser = _parser()
    if cli.COMPLETING in os.environ:
        parser.add_argument("command", choices=COMMANDS)
        parser.options([])
    if argv and argv[0][:1] != "-":
        parser.error(f"unknown command {argv[0]!r}, expected one of {', '.join(COMMANDS)}{cli.nearest(argv[0], COMMANDS)}")
    parser.options(argv)
    parser.error(f"expected a command: {', '.join(COMMANDS)}")


def _parser():
    width = max(map(len, COMMANDS)) + 2
    parser = cli.Parser(
        "nbcnn", "Convolutional networks whose every forward and backward pass a person can read.\n\n"
            "commands, each with a --help of its own:\n" + "\n".join(f"  {name:{width}}{text}" for name, text in COMMANDS.items()),
        """\
  nbcnn train
  nbcnn predict cat.jpg --checkpoint runs/.../best.safetensors
  nbcnn evaluate --checkpoint runs/.../best.safetensors""",
        "0 done, 2 cannot be done; more in each command's --help", usage="nbcnn COMMAND ...")
    parser.add_argument("--version", action=cli.Listing, nargs=0, const=version, help="print the version, and end")
    parser.add_argument("--completion", action=cli.Listing, nargs=0, const=completion,
                        help='print what completes names when Tab is pressed, for bash and zsh: eval "$(nbcnn --completion)"')
    parser.add_lists(models=cli.list_models)
    return parser


if __name__ == "__main__":
    sys.exit(main())
