"""`nbcnn data`, or `python -m nbcnn.data`: the data sets known by name; --help lists the options."""
import io
import shlex
import sys

import numpy as np
from PIL import Image, ImageDraw

from nbcnn import cli, datasets
from nbcnn.datasets.choice import FILES
from nbcnn.datasets.sources import SOURCES, get
from nbcnn.files import write_atomically
from nbcnn.kernels.shown import shown
from nbcnn.pictures import MODES
from nbcnn.recipes import mean_std
from nbcnn.table import format_table, printable

NAME = "nbcnn data"
NAMES = {"get": SOURCES, "show": datasets.DATASETS}     # what each action knows
CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"]}
EACH = 10           # images of a class on a contact sheet
GAP, LABEL = 2, 120     # pixels of a contact sheet between images, and for the name of a class


def main(argv=None):
    """Get, list or show, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    options = {"data_dir": "data", **_parser().options(argv)}
    action, name, place = options["action"], options.get("name"), options["data_dir"]
    if action == "list":
        if name is not None:
            raise ValueError(f"list: expected no NAME, got {shown(name)}")
        cli.say(*_listed(place).split("\n"))
        return 0
    if name not in NAMES[action]:
        got = "none" if name is None else shown(name) + cli.nearest(name, NAMES[action])
        raise ValueError(f"{action}: expected one of {', '.join(NAMES[action])}, got {got}")
    if action == "show":
        _show(name, place, options.get("out", f"{name}.png"), options.get("skip_broken", False))
    else:
        find, read = FILES[name]
        if find(place) is None:
            get(name, place, options.get("url"))
        train, test = read(place)       # so it is whole, whoever has put it there
        cli.tell(f"{name}: {len(train):,} images to train, {len(test):,} to test, in {find(place)[0]}; to train on them:",
                 2, f"nbcnn train --dataset {name} --data-dir {shlex.quote(place)}")
    return 0


def _listed(place):
    """A table of the sets that can be had."""
    rows = []
    for name, source in SOURCES.items():
        found = FILES[name][0](place)
        rows.append([name, source.what, f"{sum(file.size for file in source.wanted) / 1e6:.0f}", "yes" if found else "no"])
    return format_table(["name", "", "MB", "there"], rows) + f"\n\nthere: in {place}; nbcnn data get NAME downloads one"


def _show(name, place, path, skip_broken):
    """Print what is in a set, and write its contact sheet."""
    sets, why = datasets.choose(name, place, skip_broken=skip_broken)
    train, test = sets
    mean, std = mean_std(train.images)
    counts = [np.bincount(part.labels, minlength=len(train.classes)) for part in sets]
    channels, height, width = train.images.shape[1:]
    write_atomically(path, contact_sheet(train))
    cli.tell(f"{name}: {len(train):,} images to train, {len(test):,} to test, of {channels} x {height} x {width}; {why}")
    cli.say("", *format_table(["class", "train", "test"], [[label, *(f"{count:,}" for count in row)]
                              for label, *row in zip(train.classes, *counts, strict=True)]).split("\n"), "",
            *format_table(["of the pixels / 255", "mean", "std"], [[channel, f"{a:.4f}", f"{b:.4f}"]
                          for channel, a, b in zip(CHANNELS[channels], mean, std, strict=True)]).split("\n"), "")
    cli.tell(f"the first {EACH} images to train of each class: {path}")


def contact_sheet(dataset):
    """A PNG, as bytes: a row for each class of a Dataset, its name and its first images."""
    channels, height, width = dataset.images.shape[1:]
    size = LABEL + EACH * (width + GAP), len(dataset.classes) * (height + GAP)
    sheet = Image.new(MODES[channels], size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(dataset.classes):
        top = row * (height + GAP)
        draw.text((GAP, top + height // 2), printable(label), "black", anchor="lm")
        draw.rectangle((LABEL - GAP, top, sheet.width, top + height), "white")      # over the end of a long name
        for column, image in enumerate(dataset.images[np.flatnonzero(dataset.labels == row)[:EACH]]):
            pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
            sheet.paste(Image.fromarray(pixels), (LABEL + column * (width + GAP), top))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _parser():
    parser = cli.Parser(
        NAME, "Data sets by name: download one, list what there is, or show what is in one.",
        """\
  nbcnn data get cifar10
  nbcnn data list
  nbcnn data show fashion-mnist --out clothes.png
  nbcnn data get mnist --url https://example.org/mirror/mnist""",
        "0 done, 2 cannot be done, 130 Ctrl-C, after which the same again goes on")
    parser.add_argument("action", choices=["get", "list", "show"], help="what to do")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"get: {', '.join(SOURCES)}; show: these and shapes, folder")
    parser.add("--data-dir", "folder for the files; each set gets one in it (default: data)", metavar="DIR")
    parser.add("--url", "get: address of a folder that has the same files, to take them from", metavar="URL")
    parser.add_skip_broken()
    parser.add("--out", "show: file for the contact sheet (default: NAME.png)", metavar="FILE.png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
