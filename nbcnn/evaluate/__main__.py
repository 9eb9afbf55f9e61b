"""`nbcnn evaluate`, or `python -m nbcnn.evaluate`: measure a network from a checkpoint; --help lists the options."""
import json
import sys

from tqdm import tqdm

from nbcnn import cli, datasets
from nbcnn.evaluation import measure
from nbcnn.recipes import split_off
from nbcnn.scheduler import BackpropScheduler

NAME = "nbcnn evaluate"


def main(argv=None):
    """Evaluate, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    options = {"split": "test", "batch_size": 256, "json": False, "skip_broken": False, "views": 1, **_parser().options(argv)}
    saved = cli.load_trained(options)
    if saved.model.classes is None and "dataset" not in {**saved.options, **options}:
        raise ValueError(f"--dataset: {options['checkpoint']} does not say what it was trained with; give one of --list-datasets")
    known = {"dataset": "auto", "data_dir": "data", **saved.options, **options}
    name, place, model = known["dataset"], known["data_dir"], saved.model
    if name == "shapes" and "data_dir" in options:
        raise ValueError(f"--data-dir {place}: the shapes are built in; give --dataset cifar10 or --dataset folder as well")
    if model.input_shape is not None:
        BackpropScheduler(model, None).fitting(model.input_shape, 1)        # before images of that size are read
    share = saved.options.get("val_share") if not {"dataset", "data_dir"} & set(options) else None
    wanted = "train" if share and options["split"] == "val" else options["split"]
    (dataset,), why = datasets.choose(name, place, [wanted], shape=model.input_shape, classes=model.classes,
                                      max_pixels=options.get("max_pixels"), skip_broken=options["skip_broken"])
    if share and wanted == "train":         # the part that was trained on, or that the best epoch was chosen with
        dataset = split_off(dataset, share, saved.options["seed"])[options["split"] == "val"]
    if model.input_shape is None:
        model.input_shape = dataset.images.shape[1:]
    precision = cli.tried_precision(NAME, options, model, min(options["batch_size"], len(dataset)))
    scheduler = BackpropScheduler(model, cli.make_loss(saved.options), precision=precision)
    with tqdm(total=len(dataset), unit=" images", leave=False, disable=None) as bar:
        found = measure(scheduler, dataset, options["batch_size"], lambda done: bar.update(done - bar.n), options["views"])
    if options["json"]:
        cli.say(json.dumps({"checkpoint": options["checkpoint"], "dataset": dataset.name, "split": options["split"],
                            **found.as_dict()}))
    else:
        images = "the images" if name == "folder" else f"the {options['split']} images of {dataset.name},"
        cli.tell(f"{options['checkpoint']} on {images} {why}")
        cli.say("", *str(found).split("\n"))
    return 0


def _parser():
    parser = cli.Parser(
        NAME, "Measure a network from a checkpoint: loss, accuracy, precision and recall of each class, and the confusion matrix.",
        """\
  nbcnn evaluate --checkpoint latest
  nbcnn evaluate --checkpoint best.safetensors --data-dir ~/cifar10 --json
  nbcnn evaluate --checkpoint runs/pets --dataset folder --data-dir pets/test""",
        "0 done, 2 cannot be done, 130 Ctrl-C")
    parser.add_checkpoint()
    parser.add("--dataset", "the labelled images, one of --list-datasets (default: what the network was trained with, else auto)",
               choices=["auto", *datasets.DATASETS], metavar="NAME")
    parser.add("--data-dir", "folder with the data set's files, or its parent; with --dataset folder the one that holds train and "
                             "test, or the classes themselves (default: where training found them, else data)", metavar="DIR")
    parser.add("--split", "which part of the data set (default: test)", choices=["train", "test", "val"])
    parser.add_max_pixels()
    parser.add_skip_broken()
    parser.add("--batch-size", "images at a time (default: 256)", type=cli.whole(1), metavar="N")
    parser.add_views()
    parser.add_precision(" (default: f32)")
    parser.add("--json", "one JSON object instead of tables", action="store_true")
    parser.add_device("where to compute")
    parser.add_config()
    parser.add_lists()
    return parser


if __name__ == "__main__":
    sys.exit(main())
