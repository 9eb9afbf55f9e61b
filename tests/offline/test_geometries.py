"""The kernels of convolutions that no network here has: any geometry compiles, and has room.

What spills registers, or divides in an inner loop, is printed: both cost time only.
"""
import numpy as np
import pytest

from nbcnn.kernels import (
    adaptive_avgpool2d_backward,
    adaptive_avgpool2d_forward,
    conv2d_backward,
    conv2d_forward,
    conv2d_maxpool2d_backward,
    conv2d_maxpool2d_forward,
    maxpool2d_backward,
    maxpool2d_forward,
)

from . import installed  # noqa: F401
from activations import CASES

pytestmark = pytest.mark.offline

# x (C, H, W), w (O, KH, KW), and the options.
CONVOLUTIONS = {
    "3x3, stride 2": ((32, 17, 15), (64, 3, 3), dict(stride=2, padding=1)),
    "5x3, stride 3x1, dilation 1x2": ((5, 29, 23), (7, 5, 3), dict(stride=(3, 1), padding=(2, 1), dilation=(1, 2))),
    "11x11, stride 4": ((3, 64, 64), (48, 11, 11), dict(stride=(4, 1), padding=2)),
    "1x1 of many channels": ((512, 7, 7), (300, 1, 1), {}),
}
GROUPED = {
    "3x3, depthwise": ((32, 17, 15), (32, 3, 3), dict(padding=1, groups=32)),
    "2x3 of two groups, stride 2": ((6, 9, 8), (10, 2, 3), dict(stride=2, padding="valid", groups=2)),
}
POOLED = {
    "3x3, 64x64": ((3, 64, 64), (64, 3, 3), dict(padding=1)),
    "3x3 of many channels": ((256, 8, 8), (512, 3, 3), dict(padding=1)),
    "7x7, window 3, odd sizes": ((5, 35, 29), (11, 7, 7), dict(padding=3, pool_size=3)),
    "2x4, window 1x4": ((6, 9, 30), (10, 2, 4), dict(pool_size=(1, 4))),
}
POOLS = {
    "3x3, stride 2, padding 1": ((8, 33, 31), dict(kernel_size=3, stride=2, padding=1)),
    "2x3, dilation 2x1": ((8, 12, 9), dict(kernel_size=(2, 3), dilation=(2, 1))),
}
CHANNELS = {"images": (64, 15, 15), "vectors": (300,)}
N = 4


@pytest.fixture
def check(offline):
    """Call a function on arrays that are not there, and look at all kernels of arithmetic that it would have launched."""
    from nbcnn.kernels.cuda import empty
    with offline.pretended_gpu() as launched:
        def run(geometry, function):
            function(lambda *shape, dtype=np.float32: empty(shape, dtype))
            calls = offline.distinct(call for call in launched if offline.name_of(call) not in ("copy_elements", "sum_parts"))
            codes = [offline.compiled(call) for call in calls]
            for call, code in zip(calls, codes, strict=True):
                print(f"\n{geometry}: {code.name}, {offline.threads_of(call)} threads, {code.registers} registers, "
                      f"{code.shared} bytes shared, {code.spills} bytes spilled, {len(code.slow_divisions)} slow divisions", end="")
                assert code.shared <= 48 * 1024
                assert code.blocks_per_multiprocessor(offline.threads_of(call))
                assert code.doubles == []
            return [code.name for code in codes]
        yield run


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_conv2d(check, geometry):
    (C, H, W), (O, KH, KW), options = CONVOLUTIONS[geometry]

    def both(array):
        x, w = array(N, C, H, W), array(O, C, KH, KW)
        y = conv2d_forward(x, w, array(O), **options)
        conv2d_backward(array(*y.shape), x, w, **options)
    assert {"conv2d_forward", "conv2d_backward_weight", "conv2d_backward_input"} == set(check(geometry, both))


@pytest.mark.parametrize("geometry", GROUPED)
def test_conv2d_groups(check, geometry):
    (C, H, W), (O, KH, KW), options = GROUPED[geometry]

    def both(array):
        x, w = array(N, C, H, W), array(O, C // options["groups"], KH, KW)
        y = conv2d_forward(x, w, array(O), **options)
        conv2d_backward(array(*y.shape), x, w, **options)
    assert {f"conv2d_groups_{name}" for name in ("forward", "backward_weight", "backward_input")} | {"conv2d_backward_bias"} == set(
        check(geometry, both))


def test_adaptive_avgpool2d(check):
    def both(array):
        y = adaptive_avgpool2d_forward(array(N, 8, 17, 5), (3, 9))
        adaptive_avgpool2d_backward(y, (N, 8, 17, 5))
    assert check("17x5 to 3x9", both) == ["adaptive_avgpool2d_forward", "adaptive_avgpool2d_backward"]


@pytest.mark.parametrize("geometry", POOLED)
def test_conv2d_maxpool2d(check, geometry):
    (C, H, W), (O, KH, KW), options = POOLED[geometry]

    def both(array):
        x, w = array(N, C, H, W), array(O, C, KH, KW)
        y, argmax = conv2d_maxpool2d_forward(x, w, array(O), **options)
        conv2d_maxpool2d_backward(array(*y.shape), argmax, x, w, **options)
    assert check(geometry, both) == ["conv2d_maxpool2d_forward", "conv2d_maxpool2d_backward"]


@pytest.mark.parametrize("geometry", POOLS)
def test_maxpool2d(check, geometry):
    (C, H, W), options = POOLS[geometry]

    def both(array):
        x = array(N, C, H, W)
        y, argmax = maxpool2d_forward(x, **options)
        maxpool2d_backward(array(*y.shape), argmax, x.shape)
    assert check(geometry, both) == ["maxpool2d_forward", "maxpool2d_scatter"]


@pytest.mark.parametrize("geometry", CHANNELS)
@pytest.mark.parametrize("activation", [None, *[(case.layer(*case.options).function, case.layer(*case.options).options)
                                                for case in CASES]], ids=str)
def test_batchnorm(check, geometry, activation):
    """With every activation that may follow."""
    shape = CHANNELS[geometry]

    def all_of_it(array):
        from nbcnn.kernels import cuda
        running = array(shape[0]), array(shape[0]), array(1, dtype=np.int64)
        operation, params = cuda.BatchNorm(shape, 1e-5, 0.1, activation, running, np.float32), (array(shape[0]), array(shape[0]))
        x, gradients = cuda.Buffer(N, shape, np.float32), cuda.Gradients(operation, N, (shape[0],) * 2, np.float32)
        cuda.run(operation.forward(N, x, x, params) + operation.evaluate(N, x, x, params) + operation.commit(N))
        cuda.run(operation.backward(N, x, gradients.targets, x, x, x, params, (False, False)))
    assert set(check(geometry, all_of_it)) == {
        "batchnorm_statistics", "batchnorm_forward", "batchnorm_count", "batchnorm_commit", "batchnorm_backward_sums",
        "batchnorm_backward"}
