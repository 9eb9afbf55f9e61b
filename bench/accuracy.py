"""A recipe trained by nbcnn and by PyTorch in one run: the same initial weights, images, order, augmentation and learning rates.

    python bench/accuracy.py [--recipe resnet20] [--epochs N] [--seeds 0 1 2] [--data-dir data]

Each batch is made once, by nbcnn's loader, and both sides take a step with it. So they differ by rounding alone; in the long run
that is enough to make two networks of them, which are as different as those of two seeds. Recipes with SGD and one group of
parameters, without what changes weights besides it: all but airbench94.
"""
import numpy as np
import torch

import nbcnn
from nbcnn import datasets, recipes
from nbcnn.fit import total_steps
from nbcnn.kernels.images import normalize_images

from common import Parser, describe, set_threads, table, thread_count, torch_model, whole

RECIPES = [name for name, options in recipes.RECIPES.items() if options["optimizer"] == "sgd" and not options["lookahead"]]


class Torch:
    """The same network, loss and optimizer in PyTorch."""

    def __init__(self, model, options):
        self.net = torch_model(model).to(memory_format=torch.channels_last)
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=options["label_smoothing"])
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), options["lr"], options["momentum"], weight_decay=options["weight_decay"],
            nesterov=options["nesterov"])

    def step(self, images, labels, lr):
        """The loss of a batch, after which the weights are others."""
        self.net.train()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss = self.criterion(self.net(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def accuracy(self, test, table):
        """The share of images of which it knows the class."""
        self.net.eval()
        right = 0
        with torch.no_grad():
            for start in range(0, len(test), 500):
                images = np.empty(test.images[start:start + 500].shape, np.float32)
                normalize_images(images, test.images[start:start + 500], table)
                right += (self.net(torch.from_numpy(images)).argmax(1).numpy() == test.labels[start:start + 500]).sum()
        return right / len(test)


def train(options):
    """Train both; their test accuracies after the last epoch."""
    train_set, _, test, _ = recipes.load_datasets(options)
    total = total_steps(options["epochs"], -(-len(train_set) // options["batch_size"]))
    schedule = recipes.SCHEDULES[options["schedule"]](options["lr"], total)
    model = recipes.make_network(nbcnn.models.find(options["model"]), options, train_set)
    optimizer = recipes.make_optimizer(model, options, total)
    torch_side, scheduler = Torch(model, options), nbcnn.BackpropScheduler(
        model, nbcnn.CrossEntropyLoss(label_smoothing=options["label_smoothing"]))
    augment = recipes.augmentation(options)
    loader = datasets.Loader(train_set, options["batch_size"], options["shuffle"], options["seed"], bool(augment), mean=model.mean,
                             std=model.std, **augment or {})
    done = 0
    for epoch in range(int(options["epochs"])):
        losses = []
        for images, labels in loader.epoch(epoch):
            optimizer.lr = schedule(done)
            losses.append((scheduler.train_step(images, labels, optimizer), torch_side.step(images, labels, optimizer.lr)))
            done += 1
        found = nbcnn.evaluate(model, test).accuracy, torch_side.accuracy(test, loader.table)
        print(f"seed {options['seed']}, epoch {epoch + 1}: loss {np.mean(losses, 0).round(4).tolist()}, test accuracy "
              f"{found[0]:.2%} {found[1]:.2%} (nbcnn, PyTorch)", flush=True)
    return found


def main():
    parser = Parser(__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="resnet20")
    parser.add_argument("--epochs", type=whole, help="instead of the recipe's")
    parser.add_argument("--seeds", type=lambda text: whole(text, 0), nargs="+", default=[0])
    parser.add_argument("--data-dir", default="data", help="folder that holds CIFAR-10's files")
    parser.add_argument("--threads", type=thread_count, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    rows = []
    for seed in given.seeds:
        options = {"recipe": given.recipe, "dataset": "cifar10", "data_dir": given.data_dir, "seed": seed}
        ours, theirs = train(recipes.new_options(options | ({"epochs": given.epochs} if given.epochs else {})))
        rows.append([seed, f"{ours:.2%}", f"{theirs:.2%}", f"{100 * (ours - theirs):+.2f}"])
    print(f"\n{given.recipe}, {given.epochs or 'all'} epochs; {describe(given.threads)}\n")
    print(table(["seed", "nbcnn", "PyTorch", "points"], rows))


if __name__ == "__main__":
    main()
