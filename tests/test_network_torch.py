"""Networks drawn at random, of all layers and with values that several read: PyTorch's outputs and gradients, in float64."""
import numpy as np
import pytest
from random_networks import IMAGES, OUTPUTS, random_network, torch_outputs

import nbcnn

NETWORKS = 50
OTHERS = {"Layer", "Activation"}


def network(seed, **options):
    return random_network(np.random.default_rng(seed), seed=seed, dtype=np.float64, **options)


def near(ours, theirs):
    """To 1e-11, element by element; of numbers below 1, some thousand of which are added up, rounding leaves 1e-13."""
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(NETWORKS))
def test_outputs_and_gradients(seed):
    """In two steps, as what is dropped changes from one to the next, of the images and of all parameters; and in evaluation."""
    import torch
    rng, model = np.random.default_rng([seed, 1]), network(seed)
    images, labels = rng.standard_normal((5, *IMAGES)), rng.integers(0, OUTPUTS, 5)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), need_dx=True, fuse=seed % 2 == 0)
    for _ in range(2):
        tensors = {name: torch.from_numpy(p.numpy()).requires_grad_() for name, p in model.named_parameters()}
        x = torch.from_numpy(images).requires_grad_()
        y = torch_outputs(model, x, tensors, True)
        expected = torch.nn.functional.cross_entropy(y, torch.from_numpy(labels))
        expected.backward()
        near(step.predict(images, training=True), y)
        near(step.forward(images, labels), expected)
        step.backward()
        near(step.dx, x.grad)
        for name, parameter in model.named_parameters():
            near(parameter.grad, tensors[name].grad)
            parameter.grad = None
        near(model(images), torch_outputs(model, x, tensors, False))


def test_what_is_drawn():
    """All layers there are, values of several readers, one that a layer reads twice, joints of three, and what is fused."""
    models = [network(seed) for seed in range(NETWORKS)]
    assert {type(layer).__name__ for model in models for layer in model.layers.values()} == set(nbcnn.layers.__all__) - OTHERS
    inputs = [(model.layers[name], names) for model in models for name, names in model.inputs.items()]
    for kind in (nbcnn.Add, nbcnn.Concat):
        assert sum(type(layer) is kind and len(names) > len(set(names)) for layer, names in inputs) > 5
        assert sum(type(layer) is kind and len(names) > 2 for layer, names in inputs) > 5
    readers = [[names.count(name) for names in model.inputs.values()] for model in models for name in model.layers]
    assert sum(np.count_nonzero(counts) > 1 for counts in readers) > 20
    assert sum("fused" in str(nbcnn.BackpropScheduler(model, None)) for model in models) > 5
