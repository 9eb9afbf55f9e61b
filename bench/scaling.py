"""How the cost of nbcnn's training step grows with images in a batch, threads, size of the images, and channels.

    python bench/scaling.py [--only batch threads size channels] [--seconds 10]

Batches and threads with cifar10_quick; sizes and channels with 3x3 convolutions to C, 2C and 4C channels, each with ReLU and
max-pooling, on 32 images in a batch. The points of a table take turns. GFLOP/s count what `step.py` counts.
"""
import numba
import numpy as np

from common import (
    MODELS,
    Parser,
    describe,
    duration,
    interleaved,
    megaflop,
    peaks,
    pyramid,
    share,
    table,
    thread_count,
    training,
    whole,
)

BATCH = 32          # of sizes and channels


def measured(name, points, options):
    """Print the table of points (label, model, batch, threads)."""
    times = interleaved([training(model, batch)[0] for _, model, batch, _ in points], options.rounds, options.seconds,
                        [threads for *_, threads in points])
    rows = []
    for (label, model, batch, threads), seconds in zip(points, np.median(times, 1), strict=True):
        per_image = megaflop(model, 4)
        rate = per_image * batch / seconds / 1e3
        rows.append([label, f"{seconds * 1e3:.2f}", f"{seconds / batch * 1e6:.0f}", f"{batch / seconds:,.0f}", f"{per_image:.1f}",
                     f"{rate:.0f}", share(rate, threads)])
    header = [name, "step ms", "us an image", "images/s", "MFLOP an image", "GFLOP/s", "share of peak"]
    print(f"\n{table(header, rows)}", flush=True)


def main():
    most, quick = numba.config.NUMBA_NUM_THREADS, MODELS["cifar10_quick"]
    tables = {
        "batch": lambda threads: [(batch, quick(), batch, threads) for batch in (2 ** k for k in range(11))],
        "threads": lambda threads: [(count, quick(), 64, count) for count in range(1, most + 1)],
        "size": lambda threads: [(f"{size}x{size}", pyramid(size, 64), BATCH, threads) for size in (16, 32, 64)],
        "channels": lambda threads: [(C, pyramid(32, C), BATCH, threads) for C in (16, 32, 64, 128, 256)],
    }
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=list(tables), nargs="+", default=list(tables), help="tables")
    parser.add_argument("--threads", type=thread_count, default=most, help="except in the table of threads")
    parser.add_argument("--seconds", type=duration, default=10.0, help="for each table")
    parser.add_argument("--rounds", type=whole, default=10, help="turns of each point")
    options = parser.parse_args()
    for name in options.only:
        measured(name, tables[name](options.threads), options)
    print(f"\n{describe(options.threads)}; {peaks(range(1, most + 1))}")


if __name__ == "__main__":
    main()
