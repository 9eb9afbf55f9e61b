"""bfloat16 beside PyTorch's autocast: gradients of the same networks, measured against float64."""
import numpy as np
import pytest

import nbcnn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

WORSE = 1.2     # how much larger an error may be than PyTorch's, which rounds at other places


def normalized():
    """Convolutions with batch norm, a sum of two ways, and a function without kinks."""
    return nbcnn.Network([
        ("conv1", nbcnn.Conv2d(3, 16, 3, padding=1, bias=False)), ("norm1", nbcnn.BatchNorm2d(16)), ("gelu1", nbcnn.GELU()),
        ("conv2", nbcnn.Conv2d(16, 16, 3, padding=1, bias=False)), ("norm2", nbcnn.BatchNorm2d(16)), ("gelu2", nbcnn.GELU()),
        ("add", nbcnn.Add(), ["gelu2", "gelu1"]), ("average", nbcnn.AvgPool2d(4)), ("flatten", nbcnn.Flatten()),
        ("linear", nbcnn.Linear(16 * 2 * 2, 10))], input_shape=(3, 8, 8))


def in_torch(model):
    """The same network with the same weights."""
    class Net(torch.nn.Module):
        def forward(self, x):
            values = {"input": x}
            for name, inputs in model.inputs.items():
                read = [values[value] for value in inputs]
                values[name] = read[0] + read[1] if name == "add" else getattr(self, name)(*read)
            return values[name]
    net = Net()
    for name, kind, arguments, *_ in model.structure():
        if kind != "Add":
            net.add_module(name, getattr(torch.nn, kind)(**arguments))
    net.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    return net.train()


def gradients(net, images, labels):
    """By name, in float64."""
    torch.nn.functional.cross_entropy(net(images), labels).backward()
    return {name: parameter.grad.double().numpy() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("make", [nbcnn.models.lenet5, nbcnn.models.cifar10_quick, normalized], ids=lambda make: make.__name__)
def test_gradients_are_as_good_as_autocasts(make):
    """Of each parameter the error's root mean square over four networks and batches, as one draw says little."""
    errors = {}
    for seed in range(4):
        model, rng = make(), np.random.default_rng(seed)
        images = rng.standard_normal((8, *model.input_shape)).astype(np.float32)
        labels = rng.integers(0, 10, 8)
        x, t = torch.tensor(images), torch.tensor(labels)
        exact = gradients(in_torch(model).double(), x.double(), t)
        net = in_torch(model)
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.functional.cross_entropy(net(x), t).backward()
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), precision="bf16")
        step.forward(images, labels)
        step.backward()
        theirs = dict(net.named_parameters())
        for name, parameter in model.named_parameters():
            right, pair = exact[name], (parameter.grad, theirs[name].grad.numpy())
            errors.setdefault(name, []).append([np.linalg.norm(found - right) / np.linalg.norm(right) for found in pair])
    for name, pairs in errors.items():
        mine, other = np.sqrt(np.square(pairs).mean(0))
        assert 0 < mine < WORSE * other, (name, mine, other)
