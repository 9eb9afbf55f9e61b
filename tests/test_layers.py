"""What all layers have in common, for each of them, and for those of a file outside the package."""
import numpy as np
import pytest

import nbcnn

import checks
from cases import LAYERS, OWN_LAYERS

each = pytest.mark.parametrize("case", LAYERS + OWN_LAYERS, ids=str)


def test_every_layer_is_here():
    assert {case.layer.__name__ for case in LAYERS} | {"Layer", "Activation"} == set(nbcnn.layers.__all__)


@pytest.mark.parametrize("case", [*(pytest.param(case, marks=pytest.mark.quick) for case in LAYERS), *OWN_LAYERS], ids=str)
def test_gradients(case):
    checks.check_gradients(case)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contract(case, dtype):
    checks.check_contract(case, "cpu", dtype)


@each
def test_training(case, tmp_path):
    checks.check_training(case, tmp_path / "file")


@pytest.mark.quick
def test_training_in_float64(tmp_path):
    """Of a convolution that is pooled; its kernels are compiled for the gradients above."""
    (pooled,) = (case for case in LAYERS if case.layer is nbcnn.MaxPool2d)
    checks.check_training(pooled, tmp_path / "file", np.float64)
