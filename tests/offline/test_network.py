"""Every kernel for sm_90, those of CIFAR-10's networks for sm_80 too: assembles, without spills, within budgets, in float32."""
import numpy as np
import pytest

import nbcnn

from . import installed  # noqa: F401
from activations import CASES
from cases import LAYERS
from checks import network

pytestmark = pytest.mark.offline

ARCHITECTURES = ["sm_80", "sm_90"]
LOSSES = [nbcnn.CrossEntropyLoss, nbcnn.MSELoss, nbcnn.L1Loss, nbcnn.BCELoss, nbcnn.BCEWithLogitsLoss]
BATCH = 64      # on which nothing but the grid depends


def networks(offline):
    """Training steps of both networks, fused and not: what a graph records."""
    for model in (nbcnn.models.cifar10_quick, nbcnn.models.cifar10_quick_relu):
        for fuse in (True, False):
            yield from offline.training_calls(model(), BATCH, fuse=fuse)


def averages(offline):
    """The first convolution's pixels, averaged: in windows side by side, in windows that overlap and reach outside, and all."""
    model = nbcnn.Sequential([
        nbcnn.Conv2d(3, 32, 5, padding=2), nbcnn.AvgPool2d(2), nbcnn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nbcnn.GlobalAvgPool2d(), nbcnn.Flatten(), nbcnn.Linear(32, 10)], input_shape=(3, 32, 32))
    return offline.training_calls(model, BATCH)


def augmented(offline, launched):
    """All that may be done to images, in a kernel with the update and in one of its own."""
    from nbcnn.kernels.cuda import to_device
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3072, 10)], input_shape=(3, 32, 32))
    yield offline.training_calls(model, BATCH, augment=True, shift_per="image", border="reflect", cutout=8)[-1]
    images, pairs = np.zeros((BATCH, 3, 32, 32), np.uint8), np.zeros((BATCH, 2), np.int64)
    out, flip, table = (to_device(np.zeros(shape, dtype)) for shape, dtype in (
        (images.shape, np.float32), ((BATCH,), bool), ((3, 256), np.float32)))
    nbcnn.kernels.load_images(out, to_device(images), to_device(pairs[:, 0]), flip, pairs, table, border="reflect", cutout=8,
                              corners=pairs)
    yield from drained("images", launched)


def layers(offline):
    """Every layer there is, between two that learn."""
    return [call for case in LAYERS for call in offline.training_calls(network(case, np.float32), BATCH)]


def by_hand(launched):
    """A step whose forward, backward and update are called one by one, and predict; what other optimizers have, a sum's gradient
    by itself, what frozen weights leave, and running statistics."""
    from nbcnn.kernels.cuda import to_device
    model = nbcnn.models.cifar10_quick().to("cuda")
    optimizer = nbcnn.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = np.zeros((BATCH, 3, 32, 32), np.uint8), np.zeros(BATCH, np.int64)
    nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()).train_step(images, labels, optimizer)
    model.predict(images)
    optimizer = nbcnn.Lookahead(nbcnn.Adam(model.parameters()), every=1)
    nbcnn.clip_grad_norm_(model.parameters(), 0.0)
    optimizer.step()
    nbcnn.kernels.add_backward(to_device(np.zeros((BATCH, 8), np.float32)), 2)
    model = nbcnn.Sequential([
        nbcnn.Conv2d(3, 8, 3), nbcnn.MaxPool2d(2), nbcnn.BatchNorm2d(8), nbcnn.Conv2d(8, 8, 3), nbcnn.Flatten(),
        nbcnn.Linear(8 * 13 * 13, 10)], input_shape=(3, 32, 32), frozen=["0.weight", "3.weight"]).to("cuda")
    nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()).train_step(images, labels, nbcnn.SGD(model.parameters(), lr=0.01))
    return drained("by hand", launched)


def losses(offline, launched):
    """Each loss at the end of a network, with the class labels that lie on the device, and as a function; softmax."""
    from nbcnn.kernels.cuda import empty
    for loss in LOSSES:
        for last in ([], [nbcnn.ReLU()]):       # a linear layer takes in the loss, another one does not
            model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(64, 10), *last], input_shape=(1, 8, 8))
            calls = [call for _, call in offline.training_calls(model, BATCH, loss())]
            (call,) = (call for call in calls if offline.name_of(call) in ("linear_loss", "cross_entropy", "elementwise"))
            yield loss.__name__, call
        x = empty((BATCH, 10), np.float32)
        for t in [x] + [empty((BATCH,), np.int64)] * (loss is nbcnn.CrossEntropyLoss):
            loss()(x, t)
            loss().backward(x, t)
        yield from drained(loss.__name__, launched)
    nbcnn.kernels.softmax(x)
    nbcnn.kernels.log_softmax(x)
    yield from drained("softmax", launched)


def drained(name, launched):
    """(name, Call) of what was launched, which is forgotten."""
    calls, launched[:] = [(name, call) for call in launched], []
    return calls


@pytest.fixture(scope="module")
def kernels(offline):
    """(call, what it compiles to) for each kernel, by architecture; the tables are printed."""
    with offline.pretended_gpu() as launched:
        most_used = [*networks(offline), *averages(offline), *augmented(offline, launched)]
        steps = [*most_used, *layers(offline), *by_hand(launched), *losses(offline, launched)]
        names = {id(call): name for name, call in steps}
        calls = {arch: offline.distinct(call for _, call in some)
                 for arch, some in zip(ARCHITECTURES, (most_used, steps), strict=True)}
        found = {arch: [(call, offline.compiled(call, arch, arch == "sm_90")) for call in some] for arch, some in calls.items()}
    for arch, codes in found.items():
        rows = [offline.kernel_row(names[id(call)], call, code) for call, code in codes]
        print(f"\n{arch}, batch {BATCH}\n\n{offline.table(offline.KERNEL_HEADER, rows)}")
    return found


def test_all_kernels_are_here(offline, kernels):
    """What the package has, by its source: none is missing but the one for winners that no layer of ours has made."""
    import re
    from pathlib import Path

    from nbcnn.kernels import cuda
    source = "".join(path.read_text() for path in Path(cuda.__file__).parent.glob("*.py"))
    defined = set(re.findall(r"@kernel\(\w+\)\n\s*def (\w+)\(", source))
    defined |= set(re.findall(r"\"(conv2d\w*_(?:forward|backward\w*))\"", source))        # and names that kernels are given
    assert len(defined) > 10
    assert defined - {offline.name_of(call) for call, _ in kernels["sm_90"]} == {"maxpool2d_scatter"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(kernels, arch):
    assert [(code.name, code.types, code.spills, code.stack) for _, code in kernels[arch] if code.spills or code.stack] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shared_memory(kernels, arch):
    """48 KB are what a kernel may declare. ptxas refuses more; a kernel that comes close to that has few blocks beside it."""
    assert [(code.name, code.shared) for _, code in kernels[arch] if code.shared > 48 * 1024] == []


# A multiprocessor has 65,536 registers and 2,048 threads.
BUDGETS = {
    # 4 blocks of 128 threads, so that some compute while others load
    "conv2d_forward": 128, "conv2d_backward_input": 128, "conv2d_maxpool2d_forward": 128,
    "linear_backward": 128,                 # 2 blocks of 256 threads, for the same reason; the others have few blocks
    # A thread of these has one element and waits for memory most of the time: all 2,048 threads have to fit.
    "gather": 32, "copy_elements": 32, "sum_parts": 32, "sgd": 32, "update_and_gather": 32,
    "adam": 32, "scale": 32, "average": 32,
    "maxpool2d_forward": 32, "avgpool2d_forward": 32, "add_forward": 32, "copy": 32, "concat_forward": 32, "concat_backward": 32,
    "dropout_draw": 32, "dropout": 32,
    "avgpool2d_backward": 40,               # 6 blocks of 256 threads where windows overlap, or 8
    **dict.fromkeys((f"{case.layer(*case.options).function}_{way}" for case in CASES for way in ("forward", "backward")), 32),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers(offline, kernels, arch):
    """What is not in the table has one block or more on a multiprocessor."""
    over = [(code.name, code.registers) for _, code in kernels[arch] if code.registers > BUDGETS.get(code.name, 255)]
    homeless = [code.name for call, code in kernels[arch] if not code.blocks_per_multiprocessor(offline.threads_of(call))]
    assert (over, homeless) == ([], [])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_precision(kernels, arch):
    """No literal, and no function of a literal, has made a kernel compute in float64, at 1/2 to 1/64 of the speed."""
    assert all(code.float32 for _, code in kernels[arch])
    assert [(code.name, sorted(set(code.doubles))) for _, code in kernels[arch] if code.doubles] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_inner_loops_do_not_divide(kernels, arch):
    """A division of 64-bit integers takes about a hundred instructions."""
    assert [(code.name, code.slow_divisions) for _, code in kernels[arch] if code.slow_divisions] == []


def test_correlation_multiplies(offline, kernels):
    """85 % of what the correlation's inner loop executes: what is left are loads, of which 16 bytes come at a time."""
    shares = []
    for call, code in kernels["sm_90"]:
        if code.name in offline.CORRELATIONS and call.flop:     # pixels that no tap reaches multiply nothing
            most, size = code.sass.multiplying()[0]
            shares.append(most / size)
    networks = 3 + 3 + 2                # fused, not fused, and the input gradients of these; smaller ones of `layers` follow
    assert len(shares) >= networks and min(shares[:networks]) >= 0.85


def test_winners_multiply(offline, kernels):
    """A window adds to each sum that a thread has, in registers that are known without an index: one winner's of each output."""
    for call, code in kernels["sm_90"]:
        if code.name == "conv2d_maxpool2d_backward_weight":
            weight = offline.constants(call.kernel.kernel.py_func)["backward_weight_part"]
            most, _ = code.sass.multiplying()[0]
            assert most % (weight.OC * weight.SUMS) == 0        # of one window, or several
            return
    raise AssertionError("a network has no weight gradient of winners")


def test_double_precision(offline):
    """The kernels of checks in float64, one of a kind: they fit, and may spill."""
    with offline.pretended_gpu():
        steps = offline.training_calls(nbcnn.models.cifar10_quick(dtype=np.float64), BATCH)
        calls = [call for name, call in steps if name in ("conv2+maxpool2", "linear2", "gradients")]
        codes = [offline.compiled(call, disassemble=False) for call in calls]
    print("\nspilled bytes in float64:", {code.name: code.spills for code in codes if code.spills})
    assert all(code.doubles for code in codes)      # or the test of single precision could not fail
    assert max(code.shared for code in codes) <= 48 * 1024
    assert all(code.blocks_per_multiprocessor(offline.threads_of(call)) for call, code in zip(calls, codes, strict=True))
