"""`nbcnn predict`, or `python -m nbcnn.predict`: what is in images, by a network from a checkpoint; --help lists the options."""
import io
import json
import os
import sys

import numpy as np
from tqdm import tqdm

from nbcnn import cli
from nbcnn.evaluation import number_or_none
from nbcnn.kernels import sigmoid_forward, softmax
from nbcnn.memory import max_memory
from nbcnn.pictures import LARGEST, find_pictures, picture_shape, read_pictures
from nbcnn.scheduler import BackpropScheduler
from nbcnn.views import mean_of_views

NAME = "nbcnn predict"
BATCH = 256         # images at a time, or fewer where they do not fit into
MEMORY = 2**29      # bytes: a checkpoint says how large images and layers are, and anybody may have written it
# What outputs mean, by the loss they were trained with: a function of them, and what its values are called.
MEANINGS = {"cross_entropy": (softmax, "probability"), "bce": (sigmoid_forward, "probability"),
            "mse": (np.asarray, "output"), "l1": (np.asarray, "output")}


def main(argv=None):
    """Predict, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    options = {"top": 3, "json": False, "views": 1, "image": [], **_parser().options(argv)}
    if not options["image"]:
        raise ValueError("IMAGE: expected images, folders, or - for standard input, got none")
    saved = cli.load_trained(options, min(MEMORY, max_memory()))
    shape, name = saved.model.input_shape, f"--checkpoint {options['checkpoint']}"
    at_once = _at_once(saved.model, name)
    (files, bad), done = _files(options["image"]), False
    precision = cli.tried_precision(NAME, options, saved.model, max(1, min(at_once, len(files))))
    if precision != "f32":
        at_once = _at_once(saved.model, name, precision)
    with tqdm(total=len(files), unit=" images", leave=False, disable=len(files) <= at_once or None) as bar:
        for start in range(0, len(files), at_once):
            batch = files[start:start + at_once]
            results = read_pictures([_opened(file) for file in batch], shape, options.get("threads"), options.get("max_pixels"))
            read = [(file, result) for file, result in zip(batch, results, strict=True) if not isinstance(result, Exception)]
            bad += [error for error in results if isinstance(error, Exception)]
            if read:
                lines = _lines(saved, read, options["top"], options["json"], options["views"], precision)
                with tqdm.external_write_mode(sys.stdout):
                    cli.put("\n".join(lines))
                done = True
            bar.update(len(batch))
    for error in bad:
        cli.fail(NAME, cli.said(error))
    return 0 if not bad else 1 if done else 2


def _at_once(model, name, precision="f32"):
    """How many images to take at a time; ValueError or MemoryError where the network cannot say what is in an image."""
    try:
        picture_shape(model.input_shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error} as the network's input_shape") from None
    outputs = model.output_shape(model.input_shape)
    if len(outputs) != 1:
        raise ValueError(f"{name}: expected a network with a number for each class, got outputs of shape {outputs}")
    try:
        return BackpropScheduler(model, None, precision=precision).fitting(model.input_shape, BATCH)
    except MemoryError as error:
        raise MemoryError(f"{name}: {error}") from None


def _files(arguments):
    """(the files that the arguments name, the errors of folders)."""
    files, bad = [], []
    for argument in arguments:
        if argument == "-" or not os.path.isdir(argument):
            files.append(argument)
            continue
        try:
            found = find_pictures(argument)
            if not found:
                bad.append(ValueError(f"{argument}: no images in this folder, by the ends of their names"))
            files += found
        except OSError as error:
            bad.append(error)
    return files, bad


def _opened(file):
    """What Pillow opens for an argument: the path, or standard input for -."""
    if file != "-":
        return file
    stream = io.BytesIO(sys.stdin.buffer.read(LARGEST) if sys.stdin else b"")
    stream.name = file
    return stream


def _lines(saved, read, top, as_json, views, precision):
    """What the network of a checkpoint finds in images, (file, array) pairs: a line for each, the best class first."""
    meaning, noun = MEANINGS[saved.options["loss"]]
    images = np.stack([image for _, image in read])
    values = meaning(mean_of_views(lambda view: saved.model.predict(view, len(read), precision), images, views))
    names = saved.model.classes or [str(k) for k in range(values.shape[1])]
    for (file, _), row, order in zip(read, values, np.argsort(-values, axis=1, kind="stable")[:, :top], strict=True):
        found = [(names[k], float(row[k])) for k in order]
        if as_json:
            classes = [{"class": name, noun: number_or_none(round(share, 6))} for name, share in found]
            yield json.dumps({"picture": file, "classes": classes})
        else:
            yield f"{cli.printable(file)}\t{cli.printable(', '.join(f'{name} {share:.3f}' for name, share in found))}"


def _parser():
    parser = cli.Parser(
        NAME, "Say what is in images, with a network from a checkpoint: a line for each, PATH<tab>CLASS 0.873, CLASS 0.081, ...",
        """\
  nbcnn predict cat.jpg --checkpoint latest
  nbcnn predict holidays/ more/*.png --top 1 --checkpoint best.safetensors
  curl -s https://example.org/cat.png | nbcnn predict - --checkpoint latest""",
        "0 done, 1 some images could not be read, 2 none could, or something else is wrong, 130 Ctrl-C")
    parser.add("image", "JPEG, PNG, GIF, BMP, PPM, TIFF, WEBP and AVIF files, of any size; folders, of which all files are read "
                          "whose names end as an image's; - for an image on standard input", nargs="*", metavar="IMAGE")
    parser.add_checkpoint()
    parser.add("--top", "how many classes to name (default: 3)", type=cli.whole(1), metavar="N")
    parser.add("--json", 'a JSON object a line: {"picture": ..., "classes": [{"class": ..., "probability": ...}, ...]}',
               action="store_true")
    parser.add_views()
    parser.add_precision(" (default: f32)")
    parser.add_max_pixels()
    parser.add_device("where to compute", "512M, or half of what there is where that is less")
    parser.add_config()
    return parser


if __name__ == "__main__":
    sys.exit(main())
