"""A whole training step (zero_grad, forward, backward, SGD) beside PyTorch's, in one run.

    python bench/step.py [--model cifar10_quick] [--batch 1 32 64 256 1024] [--threads 1 2] [--seconds 20] [--no-compile]
    python bench/step.py --overhead

PyTorch runs with contiguous (NCHW) memory, with channels_last, and with channels_last under torch.compile, network and loss. All
sides start from the same weights and must agree on ten losses before anything is timed; then they take turns, each number of
threads being a turn of its own. A ratio is that of PyTorch's fastest in a round to nbcnn in that round; in the rows "best" each
side has the number of threads that is best for it in that round.

--precision bf16: activations in bfloat16. PyTorch runs with autocast, and with float32 tensors whose convolutions and products of
matrices mkldnn does in bfloat16 ("conv bf16"), each in both memory formats; both sides' float32 steps stand beside it.

GFLOP/s count what the step needs: a backward pass that visits the pixels where the maxima stood, as nbcnn's does. PyTorch's does
more for the same result.

--overhead: how much of a step of one image is Python. The rest is the kernels, called one after another with the arguments
that the step called them with; what Numba needs to hand arguments over counts as theirs.
"""
import numpy as np
import torch

from nbcnn.kernels.cpu.unit import unit_in_use

from common import (
    MODELS,
    Parser,
    describe,
    duration,
    interleaved,
    megaflop,
    peaks,
    ratio,
    recorded,
    share,
    table,
    thread_count,
    torch_model,
    training,
    whole,
)

QUICK = 36.0        # MFLOP an image of cifar10_quick: 24.7 forward, and a quarter of the dense gradients of its convolutions


def sides(name, batch, compiled, precision):
    """Training steps by name, each a call without arguments: nbcnn's, and those of PyTorch in the same precision.

    With bf16 there are those in float32 too, for comparison.
    """
    model = MODELS[name]()
    mine, images, labels = training(model, batch)
    x, t = torch.from_numpy(images), torch.from_numpy(labels)
    criterion = torch.nn.CrossEntropyLoss()

    def torch_step(form, compiled=False, autocast=False, conv="none"):
        net = torch_model(model).to(memory_format=form)
        pixels, optimizer = x.contiguous(memory_format=form), torch.optim.SGD(net.parameters(), lr=0.01)

        def forward(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return criterion(net(x), t)

        forward = torch.compile(forward, dynamic=False) if compiled else forward

        def run():
            torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = conv
            optimizer.zero_grad()
            loss = forward(pixels)
            loss.backward()
            optimizer.step()
            torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
            return loss.item()
        return run

    first, last = torch.contiguous_format, torch.channels_last
    floats = {"PyTorch": torch_step(first), "channels_last": torch_step(last)}
    if compiled:
        floats["compiled"] = torch_step(last, compiled=True)
    if precision == "f32":
        functions = {"nbcnn": mine, **floats}
    else:
        functions = {"nbcnn": training(MODELS[name](), batch, precision)[0], "autocast": torch_step(first, autocast=True),
                     "autocast channels_last": torch_step(last, autocast=True), "conv bf16": torch_step(first, conv="bf16"),
                     "conv bf16 channels_last": torch_step(last, conv="bf16")}
        if compiled:
            functions["autocast compiled"] = torch_step(last, compiled=True, autocast=True)
        functions |= {"nbcnn f32": mine, **{f"{key} f32": function for key, function in floats.items()}}
    losses = np.array([[run() for run in functions.values()] for _ in range(10)])
    worst = np.abs(losses / losses[:, -1:] - 1).max()
    print(f"batch {batch}: ten losses agree to {worst:.1e}", flush=True)
    assert worst < (1e-4 if precision == "f32" else 0.05), f"the losses differ:\n{losses}"
    return functions


def steps(options):
    """The table of training steps."""
    rows, per_image = [], megaflop(MODELS[options.model](), 4)
    assert options.model != "cifar10_quick" or abs(per_image - QUICK) < 0.1, f"{per_image} MFLOP an image"

    def add(batch, threads, times, names):
        """A row of the table from times (sides, rounds)."""
        speed = batch / np.median(times[0])
        rate, mine = per_image * speed / 1e3, names.index("nbcnn f32") if "nbcnn f32" in names else len(names)
        ratios = [ratio(times[1:mine].min(0), times[0])]
        if mine < len(names):       # to our own float32, and the best of all of PyTorch's to the best of ours
            theirs = [k for k in range(1, len(names)) if k != mine]
            ratios += [ratio(times[mine], times[0]), ratio(times[theirs].min(0), times[[0, mine]].min(0))]
        rows.append([batch, threads, *(f"{ms:.2f}" for ms in np.median(times, 1) * 1e3), f"{speed:,.0f}", f"{rate:.0f}",
                     "" if threads == "best" or options.precision == "bf16" else share(rate, threads), *ratios])
        print(*rows[-1], sep="  ", flush=True)

    for batch in options.batch:
        functions = sides(options.model, batch, not options.no_compile, options.precision)
        names = list(functions)
        slots = [(threads, function) for threads in options.threads for function in functions.values()]
        times = interleaved([function for _, function in slots], options.rounds, options.seconds, [threads for threads, _ in slots])
        times = times.reshape(len(options.threads), len(functions), options.rounds)
        for threads, part in zip(options.threads, times, strict=True):
            add(batch, threads, part, names)
        if len(options.threads) > 1:
            add(batch, "best", times.min(0), names)
        # nbcnn leaves out the backward pass of a loss that is not finite, which would look fast.
        assert all(np.isfinite(run()) for run in functions.values()), "a loss is not finite"
    on = f"bf16 on the unit {unit_in_use()}; " if options.precision == "bf16" else ""
    print(f"\n{describe(' and '.join(map(str, options.threads)))}; {options.model}, {per_image:.1f} MFLOP an image; {on}"
          f"{peaks(options.threads)}\n")
    ratios = ["best of PyTorch's / nbcnn's"]
    if options.precision == "bf16":
        ratios += ["nbcnn's f32 / bf16", "best of all of PyTorch's / of nbcnn's"]
    header = ["batch", "threads", *(f"{name} ms" for name in names), "nbcnn images/s", "nbcnn GFLOP/s", "share of peak", *ratios]
    print(table(header, rows))


def overhead(options):
    """The table of what a step of one image takes besides its kernels."""
    run, _, _ = training(MODELS[options.model](), 1)
    run()
    calls = [(call.kernel, call.arguments) for call in recorded(run)]

    def kernels():
        for kernel, arguments in calls:
            kernel(*arguments)

    rows = []
    for threads in options.threads:
        whole_step, parts = interleaved([run, kernels], options.rounds, options.seconds, [threads] * 2) * 1e6
        low, middle, high = np.percentile(whole_step - parts, [25, 50, 75])
        rows.append([threads, f"{np.median(whole_step):.0f}", f"{np.median(parts):.0f}", len(calls),
                     f"{middle:.0f} ({low:.0f}-{high:.0f})"])
    print(f"\n{describe(' and '.join(map(str, options.threads)))}; {options.model}, batch 1\n")
    print(table(["threads", "step us", "kernels us", "kernels", "difference us"], rows))


def main():
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="cifar10_quick", help="network")
    parser.add_argument("--batch", type=whole, nargs="+", default=[1, 32, 64, 256, 1024], help="images in a step")
    parser.add_argument("--threads", type=thread_count, nargs="+", default=[1, 2], help="numbers of threads, of both sides")
    parser.add_argument("--seconds", type=duration, default=20.0, help="for each batch size")
    parser.add_argument("--rounds", type=whole, default=20, help="turns of each side")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes long to compile")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="of activations")
    parser.add_argument("--overhead", action="store_true", help="measure Python's part of a step of one image instead")
    options = parser.parse_args()
    (overhead if options.overhead else steps)(options)


if __name__ == "__main__":
    main()
