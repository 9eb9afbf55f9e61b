"""Using a trained network: an image, a folder of 10,000, and an evaluation beside PyTorch's forward pass; whole processes too.

    python bench/predict.py [--data-dir DIR] [--repeats 5] [--batch-size 256] [--threads 2]

The network is `cifar10_quick`, kernels compiled before. The images are CIFAR-10's test images where --data-dir has them, else
10,000 of the built-in ones; as JPEG files of 32x32 for the folder. PyTorch's side is a forward pass over images that lie in
memory as normalised floats, channels_last, without gradients; nbcnn's evaluation reads bytes, normalises them, and computes loss
and confusion.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nbcnn
from nbcnn.datasets import choose

from common import Parser, describe, interleaved, process, ratio, set_threads, table, thread_count, torch_model, whole

TORCH = """
import sys
import numpy as np, torch
from torch import nn
torch.set_num_threads(int(sys.argv[3]))
net = nn.Sequential(
    nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))
net = net.to(memory_format=torch.channels_last)
data, correct = np.load(sys.argv[1]), 0
with torch.no_grad():
    for start in range(0, len(data["images"]), int(sys.argv[2])):
        part = slice(start, start + int(sys.argv[2]))
        images = torch.from_numpy(data["images"][part]).contiguous(memory_format=torch.channels_last).float() / 255
        correct += (net(images).argmax(1) == torch.from_numpy(data["labels"][part])).sum().item()
print(correct / len(data["images"]))
"""


def main():
    parser = Parser(__doc__)
    parser.add_argument("--data-dir", default="data", help="folder with CIFAR-10")
    parser.add_argument("--repeats", type=whole, default=5, help="processes of each kind, and rounds of the rest")
    parser.add_argument("--batch-size", type=whole, default=256, help="images at a time")
    parser.add_argument("--threads", type=thread_count, default=2, help="of both sides")
    options = parser.parse_args()
    size, threads = options.batch_size, options.threads
    set_threads(threads)
    (train, test), _ = choose("auto", options.data_dir)
    dataset = test if test.name == "cifar10" else train
    where = ["--dataset", dataset.name, "--data-dir", options.data_dir, "--split", "test" if dataset is test else "train"]
    model = nbcnn.models.cifar10_quick(classes=dataset.classes)
    net = torch_model(model).to(memory_format=torch.channels_last)
    batches = torch.from_numpy(dataset.images).float().div(255).contiguous(memory_format=torch.channels_last).split(size)

    def forward():
        with torch.no_grad():
            return [net(batch) for batch in batches]

    assert np.allclose(torch.cat(forward()), model.predict(dataset.images, size), rtol=1e-3, atol=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        file, images, arrays = f"{folder}/net.safetensors", Path(folder) / "images", f"{folder}/images.npz"
        model.save(file)
        images.mkdir()
        np.savez(arrays, images=dataset.images, labels=dataset.labels)
        for k, image in enumerate(dataset.images):
            Image.fromarray(image.transpose(1, 2, 0)).save(images / f"{k:05}.jpg", quality=95)
        predict = [sys.executable, "-m", "nbcnn.predict", "--checkpoint", file, "--threads", str(threads)]
        evaluate = [sys.executable, "-m", "nbcnn.evaluate", "--checkpoint", file, "--threads", str(threads), *where,
                    "--batch-size", str(size)]
        commands = {"predict, an image": [*predict, str(images / "00000.jpg")],
                    f"predict, a folder of {len(dataset):,}": [*predict, str(images)],
                    f"evaluate on {len(dataset):,} images": evaluate,
                    "PyTorch, forward and accuracy": [sys.executable, "-c", TORCH, arrays, str(size), str(threads)]}
        seconds = {name: [] for name in commands}
        for round in range(options.repeats + 1):        # the first one compiles
            for name, command in commands.items():
                taken, _, _ = process(command)
                seconds[name] += [taken] if round else []
    times = interleaved([lambda: model.evaluate(dataset, batch_size=size), forward], options.repeats, 0)
    print(describe(threads), "\n")
    print(table(["whole process", "s", "images/s"], [
        [name, f"{np.median(taken):.2f}", "" if "an image" in name else f"{len(dataset) / np.median(taken):,.0f}"]
        for name, taken in seconds.items()]))
    _, _, evaluation, forward = seconds.values()
    print(f"\nPyTorch's / nbcnn's evaluation, whole processes: {ratio(forward, evaluation)}\n")
    names = "model.evaluate(dataset)", "PyTorch's forward pass"
    print(table(["in a process that runs", "s"],
                [[name, f"{np.median(taken):.3f}"] for name, taken in zip(names, times, strict=True)]))
    print(f"\nPyTorch's forward pass / model.evaluate: {ratio(times[1], times[0])}")
    print(f"PyTorch's forward pass alone / nbcnn evaluate as a whole process: {np.median(times[1]) / np.median(evaluation):.2f}")


if __name__ == "__main__":
    main()
