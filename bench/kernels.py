"""Kernels of the CIFAR-10 network and others beside PyTorch's (channels_last), in one run: verified first, then timed in turn.

    python bench/kernels.py [--threads 2] [--images 32] [--seconds 2]

GFLOP/s count on both sides the multiplications and additions that nbcnn's kernel needs for the result, padding included. For a
convolution pooled in the same go these are all in the forward pass, and in the gradients those at the pixels where the maxima
stood; PyTorch's side is then the convolution and the pooling one after the other, so that its "dw, db" and its "dx" both hold
the pooling's backward pass, and "dw, db, dx" holds it once.
"""
import numpy as np
import torch
from torch.ops import aten

import nbcnn
from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.launch import run

from common import Parser, describe, duration, interleaved, peaks, ratio, set_threads, share, table, thread_count, whole

# name, C, O, size, kernel, stride, padding
CONVOLUTIONS = [
    ("conv1", 3, 32, 32, 5, 1, 2),
    ("conv2", 32, 32, 16, 5, 1, 2),
    ("conv3", 32, 64, 8, 5, 1, 2),
    ("stride 2", 32, 64, 16, 3, 2, 1),
    ("3x3 64-128", 64, 128, 16, 3, 1, 1),
]


def numbers(*shape):
    """Random whole numbers, small enough that every sum of their products is exact, in whatever order."""
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)


def last(a):
    """An array as a channels_last tensor."""
    return torch.from_numpy(np.ascontiguousarray(a)).contiguous(memory_format=torch.channels_last)


def check(name, mine, theirs, tolerance=0):
    """Both sides computed the same."""
    assert np.allclose(mine, theirs.detach().numpy(), rtol=tolerance, atol=tolerance), f"{name}: the two sides differ"


def convolution(N, C, O, size, K, s, p, pooled=False):
    """(name, nbcnn's calls, PyTorch's function) for forward and the gradients of a convolution, or of one with 2x2 max-pooling."""
    OH = (size + 2 * p - K) // s + 1
    PH = OH // 2 if pooled else OH
    x, w, b, dy = numbers(N, C, size, size), numbers(O, C, K, K), numbers(O), numbers(N, O, PH, PH)
    if pooled:
        operation = cpu.Conv2dMaxPool2d((C, size, size), (O, OH, OH), (K, K), (p, p), (2, 2), False, np.float32)
    else:
        operation = cpu.Conv2d((C, size, size), (O, OH, OH), (K, K), (s, s), (p, p), (1, 1), np.float32)
    operation.reserve(N)
    xb, dyb = cpu.Buffer.holding(x), cpu.Buffer.holding(dy)
    yb, dxb = cpu.Buffer(N, dy.shape[1:], np.float32), cpu.Buffer(N, x.shape[1:], np.float32)
    params = cpu.flat_weight(w), cpu.allocate((O,), np.float32)
    params[1][:] = b
    gradients = cpu.allocate((w.size,), np.float32), cpu.allocate((O,), np.float32)
    tx, tw, tb, tdy = last(x), last(w), torch.from_numpy(b), last(dy)
    options = [s, s], [p, p], [1, 1], False, [0, 0], 1
    window = [2, 2], [2, 2], [0, 0], [1, 1], False

    def torch_forward():
        y = aten.convolution(tx, tw, tb, *options)
        return aten.max_pool2d_with_indices(y, *window) if pooled else (y,)

    conv_y = aten.convolution(tx, tw, tb, *options)
    indices = torch_forward()[1] if pooled else None

    def torch_backward(*mask):
        def backward():
            conv_dy = aten.max_pool2d_with_indices_backward(tdy, conv_y, *window, indices) if pooled else tdy
            return aten.convolution_backward(conv_dy, tx, tw, [O], *options, list(mask))
        return backward

    forward = operation.forward(N, yb, xb, params)
    dw = operation.backward_weight(N, gradients, dyb, xb, (False, False))
    dx = operation.backward_input(N, dxb, dyb, params[0])
    run([*forward, *dw, *dx])
    check("forward", yb.view(N), torch_forward()[0])
    theirs = torch_backward(True, True, True)()
    check("dw", gradients[0].reshape(O, K, K, C).transpose(0, 3, 1, 2), theirs[1])
    check("db", gradients[1], theirs[2])
    check("dx", dxb.view(N), theirs[0])
    kernels = [("forward", forward, torch_forward), ("dw, db", dw, torch_backward(False, True, True)),
               ("dx", dx, torch_backward(True, False, False))]
    return kernels + [("dw, db, dx", [*dw, *dx], torch_backward(True, True, True))] * pooled


def pool(N, C, size):
    """The same for max-pooling 2x2; no arithmetic to speak of."""
    x, dy = numbers(N, C, size, size), numbers(N, C, size // 2, size // 2)
    operation = cpu.MaxPool2d((C, size, size), (2, 2), (2, 2), (0, 0), (1, 1), dy.shape[1:], np.float32)
    tx, tdy = last(x), last(dy)
    window = [2, 2], [2, 2], [0, 0], [1, 1], False
    _, indices = aten.max_pool2d_with_indices(tx, *window)
    return both("maxpool", operation, x, dy, lambda: aten.max_pool2d_with_indices(tx, *window)[0],
                   lambda: aten.max_pool2d_with_indices_backward(tdy, tx, *window, indices))


def average(N, C, size, window):
    """The same for the means of windows side by side, or of whole planes."""
    x, dy = numbers(N, C, size, size), numbers(N, C, size // window, size // window)
    operation = cpu.AvgPool2d((C, size, size), (window, window), (window, window), (0, 0), True, None, dy.shape[1:], np.float32)
    tx, tdy = last(x), last(dy)
    options = [window], [window], [0], False, True, None
    if window == size:      # what AdaptiveAvgPool2d(1) runs, and autograd for it
        theirs = lambda: aten.mean(tx, [2, 3], True), lambda: tdy.expand_as(tx) / size ** 2
    else:
        theirs = lambda: aten.avg_pool2d(tx, *options), lambda: aten.avg_pool2d_backward(tdy, tx, *options)
    return both("avgpool", operation, x, dy, *theirs)


def activations(N, C, size):
    """(name, kernels) for each activation. PyTorch's e^x, tanh and erf round otherwise: a few units of the last place of 8."""
    x, dy = np.random.default_rng(0).standard_normal((2, N, C, size, size), np.float32)
    tx, tdy = last(x), last(dy)
    t_tanh, t_sigmoid = aten.tanh(tx), aten.sigmoid(tx)
    for name, layer, *theirs in (
            ("relu", nbcnn.ReLU(), lambda: aten.relu(tx), lambda: aten.threshold_backward(tdy, tx, 0)),
            ("leaky_relu", nbcnn.LeakyReLU(), lambda: aten.leaky_relu(tx, 0.01),
             lambda: aten.leaky_relu_backward(tdy, tx, 0.01, False)),
            ("tanh", nbcnn.Tanh(), lambda: aten.tanh(tx), lambda: aten.tanh_backward(tdy, t_tanh)),
            ("sigmoid", nbcnn.Sigmoid(), lambda: aten.sigmoid(tx), lambda: aten.sigmoid_backward(tdy, t_sigmoid)),
            *((f"gelu {form}", nbcnn.GELU(form), lambda form=form: aten.gelu(tx, approximate=form),
               lambda form=form: aten.gelu_backward(tdy, tx, approximate=form)) for form in ("none", "tanh"))):
        yield name, both(name, layer.operation(cpu, x.shape[1:], x.dtype), x, dy, *theirs, tolerance=4e-6)


def both(name, operation, x, dy, torch_forward, torch_backward, tolerance=0):
    """(name, nbcnn's calls, PyTorch's function) for both passes of an operation without parameters."""
    N = len(x)
    operation.reserve(N)
    xb, dyb = cpu.Buffer.holding(x), cpu.Buffer.holding(dy)
    yb, dxb = cpu.Buffer(N, dy.shape[1:], np.float32), cpu.Buffer(N, x.shape[1:], np.float32)
    forward, backward = operation.forward(N, yb, xb, ()), operation.backward(N, dxb, (), dyb, xb, yb, (), ())
    run([*forward, *backward])
    check(name, yb.view(N), torch_forward(), tolerance)
    check(f"{name} dx", dxb.view(N), torch_backward(), tolerance)
    return [("forward", forward, torch_forward), ("dx", backward, torch_backward)]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--threads", type=thread_count, default=2, help="of both sides")
    parser.add_argument("--images", type=whole, default=32, help="images in a call")
    parser.add_argument("--seconds", type=duration, default=2.0, help="for each kernel")
    options = parser.parse_args()
    N, threads, rows = options.images, options.threads, []
    peaks([threads])
    set_threads(threads)
    cases = [(f"{name} {C}->{O} {K}x{K}/{s} at {size}x{size}", convolution(N, C, O, size, K, s, p))
             for name, C, O, size, K, s, p in CONVOLUTIONS]
    cases += [(f"{name} {C}->{O} {K}x{K} at {size}x{size}, pooled", convolution(N, C, O, size, K, s, p, pooled=True))
              for name, C, O, size, K, s, p in CONVOLUTIONS if s == 1]
    cases += [(f"maxpool 2x2 {C} at {size}x{size}", pool(N, C, size)) for C, size in ((32, 32), (32, 16), (64, 8))]
    cases += [(f"avgpool {window}x{window} {C} at {size}x{size}", average(N, C, size, window))
              for C, size, window in ((32, 32, 2), (64, 8, 2), (64, 8, 8), (256, 4, 4))]
    cases += [(f"{name} 32 at 16x16", kernels) for name, kernels in activations(N, 32, 16)]
    for case, kernels in cases:
        for name, calls, theirs in kernels:
            times = interleaved([lambda calls=calls: run(calls), theirs], 20, options.seconds)
            milliseconds = [f"{np.median(t) * 1e3:.3f}" for t in times]
            rates = [sum(call.flop for call in calls) / np.median(t) / 1e9 for t in times]
            shown = [cell for rate in rates for cell in ((f"{rate:.0f}", share(rate, threads)) if rate else ("", ""))]
            rows.append([case, name, *milliseconds, *shown, ratio(times[1], times[0])])
            print(*rows[-1], sep="  ", flush=True)
    print(f"\n{describe(threads)}; {N} images, float32; {peaks([threads])}\n")
    print(table(["case", "kernel", "nbcnn ms", "PyTorch ms", "nbcnn GFLOP/s", "share of peak", "PyTorch GFLOP/s", "share of peak",
                 "PyTorch's time / nbcnn's"], rows))


if __name__ == "__main__":
    main()
