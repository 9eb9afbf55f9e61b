"""Each kernel of the CIFAR-10 network beside PyTorch's (channels_last), in one run: verified first, then timed in turn.

    python bench/kernels.py [--threads 2] [--images 32] [--seconds 2]

GFLOP/s count the dense work, a multiplication and an addition as two, padding included, on both sides.
"""
import argparse

import numpy as np
import torch
from torch.ops import aten

from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.launch import run

from common import describe, interleaved, ratio, set_threads, table

# name, C, O, size, kernel, stride, padding
CONVOLUTIONS = [
    ("conv1", 3, 32, 32, 5, 1, 2),
    ("conv2", 32, 32, 16, 5, 1, 2),
    ("conv3", 32, 64, 8, 5, 1, 2),
    ("stride 2", 32, 64, 16, 3, 2, 1),
    ("3x3 64-128", 64, 128, 16, 3, 1, 1),
]


def flat(a):
    """A copy in aligned memory, flat."""
    out = cpu.allocate((a.size,), a.dtype)
    out[:] = a.ravel()
    return out


def last(a):
    """An array as a channels_last tensor."""
    return torch.from_numpy(np.ascontiguousarray(a)).contiguous(memory_format=torch.channels_last)


def check(name, mine, theirs):
    """Both sides computed the same, but for the order of the additions."""
    theirs = theirs.detach().numpy()
    error = np.abs(mine - theirs).max() / np.abs(theirs).max()
    assert error < 1e-4, f"{name}: the two sides differ by {error}"


def convolution(N, C, O, size, K, s, p):
    """(name, nbcnn's call, PyTorch's call, GFLOP) for forward, weight gradient and input gradient."""
    rng = np.random.default_rng(0)
    OH = (size + 2 * p - K) // s + 1
    x, w, b, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in ((N, C, size, size), (O, C, K, K), O, (N, O, OH, OH)))
    operation = cpu.Conv2d((C, size, size), (O, OH, OH), (K, K), (s, s), (p, p), (1, 1), np.float32)
    operation.reserve(N)
    xb, dyb = cpu.Buffer.holding(x, operation.x_border), cpu.Buffer.holding(dy, operation.dy_border)
    yb, dxb = cpu.Buffer(N, (O, OH, OH), np.float32), cpu.Buffer(N, (C, size, size), np.float32)
    params, gradients = (flat(w.transpose(0, 2, 3, 1)), flat(b)), (flat(w), flat(b))
    tx, tw, tb, tdy = last(x), last(w), torch.from_numpy(b), last(dy)
    options = [s, s], [p, p], [1, 1], False, [0, 0], 1

    def forward():
        run(operation.forward(N, yb, xb, params))

    def weight_gradient():
        run(operation.weight_backward(N, gradients, dyb, xb, (False, False)))

    def input_gradient():
        run(operation.input_backward(N, dxb, dyb, params[0]))

    def torch_backward(*mask):
        return lambda: aten.convolution_backward(tdy, tx, tw, [O], *options, list(mask))

    def torch_forward():
        return torch.nn.functional.conv2d(tx, tw, tb, stride=s, padding=p)

    torch_dw, torch_dx = torch_backward(False, True, True), torch_backward(True, False, False)
    forward(), weight_gradient(), input_gradient()
    check("forward", yb.view(N), torch_forward())
    check("dw", gradients[0].reshape(O, K, K, C).transpose(0, 3, 1, 2), torch_dw()[1])
    check("db", gradients[1], torch_dw()[2])
    check("dx", dxb.view(N), torch_dx()[0])
    flop = 2 * N * OH * OH * K * K * C * O
    return [("forward", forward, torch_forward, flop), ("dw, db", weight_gradient, torch_dw, flop),
            ("dx", input_gradient, torch_dx, flop)]


def pool(N, C, size):
    """Max-pooling 2x2, forward and backward; no arithmetic to speak of."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((N, C, n, n), dtype=np.float32) for n in (size, size // 2))
    operation = cpu.MaxPool2d((C, size, size), (2, 2), (2, 2), (0, 0), (1, 1), (C, size // 2, size // 2), np.float32)
    operation.reserve(N)
    xb, dyb = cpu.Buffer.holding(x), cpu.Buffer.holding(dy)
    yb, dxb = cpu.Buffer(N, dy.shape[1:], np.float32), cpu.Buffer(N, x.shape[1:], np.float32)
    tx, tdy = last(x), last(dy)

    def torch_forward():
        return torch.nn.functional.max_pool2d(tx, 2, return_indices=True)

    ty, indices = torch_forward()

    def torch_backward():
        return aten.max_pool2d_with_indices_backward(tdy, tx, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)

    def forward():
        run(operation.forward(N, yb, xb, ()))

    def backward():
        run(operation.backward(N, dxb, (), dyb, xb, yb, (), ()))

    forward(), backward()
    check("maxpool", yb.view(N), ty)
    check("maxpool dx", dxb.view(N), torch_backward())
    return [("forward", forward, torch_forward, 0), ("dx", backward, torch_backward, 0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="per kernel")
    options = parser.parse_args()
    set_threads(options.threads)
    N, rows = options.images, []
    cases = [(f"{name} {C}->{O} {K}x{K}/{s} at {size}x{size}", convolution(N, C, O, size, K, s, p))
             for name, C, O, size, K, s, p in CONVOLUTIONS]
    cases += [(f"maxpool 2x2 {C} at {size}x{size}", pool(N, C, size)) for C, size in ((32, 32), (32, 16), (64, 8))]
    for case, kernels in cases:
        for name, mine, theirs, flop in kernels:
            a, b = interleaved([mine, theirs], 20, options.seconds)
            rate = [f"{flop / np.median(t) / 1e9:.0f}" if flop else "" for t in (a, b)]
            rows.append([case, name, f"{np.median(a) * 1e3:.3f}", f"{np.median(b) * 1e3:.3f}", *rate, ratio(b, a)])
            print(*rows[-1], sep="  ", flush=True)
    print(f"\n{describe(options.threads)}; {N} images, float32\n")
    print(table(["case", "kernel", "nbcnn ms", "PyTorch ms", "nbcnn GFLOP/s", "PyTorch GFLOP/s", "PyTorch's time / nbcnn's"], rows))


if __name__ == "__main__":
    main()
