"""A network of values with several readers on a simulated GPU: the CPU's trainings, also of what is drawn at random."""
import numpy as np
import pytest

import nbcnn

pytestmark = pytest.mark.sim

SHAPE = 2, 3, 2


def trained(device, fuse):
    """Losses, the images' gradient, the parameters, the number of steps, and outputs, after two steps and one that is none."""
    model = nbcnn.Network([
        ("conv1", nbcnn.Conv2d(2, 2, 3, padding=1)), ("drop1", nbcnn.Dropout(0.25)), ("same", nbcnn.Identity()),
        ("add1", nbcnn.Add(), ["same", "drop1", "input"]), ("concat1", nbcnn.Concat(), ["add1", "same", "add1"]),
        ("drop2", nbcnn.Dropout2d(0.3)), ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(36, 3)),
        ("scale", nbcnn.Scale(0.5)),
    ], input_shape=SHAPE, dtype=np.float64, seed=3).to(device)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), fuse=fuse, need_dx=True)
    optimizer, rng = nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.9), np.random.default_rng(0)
    images, labels, results = rng.standard_normal((5, *SHAPE)), np.array([0, 2, 1, 1, 0]), []
    for _ in range(2):
        results += [float(step.train_step(images, labels, optimizer)), step.backend.to_host(step.dx)]
    assert np.isnan(float(step.train_step(np.full_like(images, np.nan), labels, optimizer)))
    return [*results, step.backend.to_host(model.vector.steps), model(images), *model.state_dict().values()]


@pytest.mark.parametrize("fuse", [True, False])
def test_equals_cpu(fuse):
    """Sums over the batch are in another order."""
    for there, here in zip(trained("cuda", fuse), trained("cpu", fuse), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-14)
