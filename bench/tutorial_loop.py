"""One epoch of CIFAR-10 as PyTorch's tutorials write it: what `bench/epoch.py` compares `python -m nbcnn.train` with.

    python bench/tutorial_loop.py --data-dir data/cifar-10-batches-py [--workers 0] [--limit N]

The dataset is torchvision's CIFAR10 with the transform ToTensor, written out, as torchvision need not be installed. Nothing of the
other benches is imported, which would cost time and memory.
"""
import argparse
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class CIFAR10(Dataset):
    """The images of some batch files in memory, decoded one at a time."""

    def __init__(self, folder, names, limit):
        batches = [pickle.loads((Path(folder) / name).read_bytes(), encoding="latin1") for name in names]
        data = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        self.data = data.transpose(0, 2, 3, 1)[:limit]
        self.targets = [label for batch in batches for label in batch["labels"]][:limit]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = np.array(Image.fromarray(self.data[index]), np.uint8, copy=True)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous().to(torch.float32).div(255), self.targets[index]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder with the python version's batches")
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader")
    parser.add_argument("--limit", type=int, help="so many images to train and to test with")
    options = parser.parse_args()
    train = CIFAR10(options.data_dir, [f"data_batch_{k}" for k in range(1, 6)], options.limit)
    test = CIFAR10(options.data_dir, ["test_batch"], options.limit)
    train_loader = DataLoader(train, batch_size=64, shuffle=True, num_workers=options.workers)
    test_loader = DataLoader(test, batch_size=64, num_workers=options.workers)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    running = 0.0
    for images, labels in train_loader:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        running += loss.item() * len(labels)
    test_loss, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in test_loader:
            logits = net(images)
            test_loss += criterion(logits, labels).item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
    print(f"train loss {running / len(train):.4f}  test loss {test_loss / len(test):.4f}  accuracy {correct / len(test):.2%}")


if __name__ == "__main__":
    main()
