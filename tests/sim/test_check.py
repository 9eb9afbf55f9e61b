"""`nbcnn.check_gradients` of a model on a simulated GPU checks the GPU's kernels."""
import pytest

import nbcnn
from nbcnn.kernels.cuda import activations

pytestmark = pytest.mark.sim


def test_gradients(monkeypatch):
    model = nbcnn.Sequential([nbcnn.Linear(3, 2), nbcnn.Tanh()]).to("cuda")
    assert nbcnn.check_gradients(model, (3,))
    monkeypatch.setattr(activations, "tanh_backward", activations.sigmoid_backward)
    check = nbcnn.check_gradients(model, (3,))
    assert [row.ok for row in check.rows] == [False] * 3 and model.device == "cuda"
