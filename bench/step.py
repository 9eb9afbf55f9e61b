"""A whole training step of the CIFAR-10 network (zero_grad, forward, backward, SGD) beside PyTorch's, in one run.

    python bench/step.py [--threads 2] [--batch 64 ...] [--seconds 10]

Both sides start from the same weights and must agree on ten losses before anything is timed; then they take turns.
"""
import argparse
import copy

import numpy as np
import torch

import nbcnn

from common import describe, interleaved, ratio, set_threads, table, torch_model


def sides(batch):
    """nbcnn's step, PyTorch's with contiguous (NCHW) memory, and PyTorch's with channels_last, each a call without arguments."""
    model = nbcnn.models.cifar10_quick(seed=0)
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, batch)
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.01)
    view = step.images(batch)
    view[...] = images
    plain = torch_model(model)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    tx, tt = torch.from_numpy(images), torch.from_numpy(labels)

    def torch_step(net, x):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        criterion = torch.nn.CrossEntropyLoss()

        def run():
            optimizer.zero_grad()
            loss = criterion(net(x), tt)
            loss.backward()
            optimizer.step()
            return loss.item()
        return run

    functions = [lambda: step.train_step(view, labels, optimizer), torch_step(plain, tx),
                 torch_step(last, tx.contiguous(memory_format=torch.channels_last))]
    losses = np.array([[run() for run in functions] for _ in range(10)])
    assert (np.abs(losses - losses[:, 1:2]) < 1e-4 * losses[:, 1:2]).all(), f"the losses differ:\n{losses}"
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=10.0, help="per batch size")
    options = parser.parse_args()
    set_threads(options.threads)
    rows = []
    for batch in options.batch:
        mine, plain, last = interleaved(sides(batch), 20, options.seconds)
        rows.append([batch, *(f"{np.median(t) * 1e3:.2f}" for t in (mine, plain, last)), f"{batch / np.median(mine):,.0f}",
                     ratio(np.minimum(plain, last), mine)])
        print(*rows[-1], sep="  ", flush=True)
    print(f"\n{describe(options.threads)}\n")
    header = ["batch", "nbcnn ms", "PyTorch ms", "PyTorch channels_last ms", "nbcnn images/s", "better of PyTorch's / nbcnn's"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
