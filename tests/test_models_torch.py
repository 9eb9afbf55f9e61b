"""resnet20 and airbench94 beside the same networks in PyTorch, which take their state dicts, and whose state dicts they take."""
import numpy as np
import pytest

import nbcnn
from nbcnn import models

pytestmark = pytest.mark.torch


def resnet20(nn):
    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, before = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), 16
            for stage, width in enumerate((16, 32, 64), 1):
                for block in (1, 2, 3):
                    stride, name = 1 + (width > before), f"block{stage}_{block}"
                    self.add_module(f"{name}_conv1", nn.Conv2d(before, width, 3, stride, 1, bias=False))
                    self.add_module(f"{name}_norm1", nn.BatchNorm2d(width))
                    self.add_module(f"{name}_conv2", nn.Conv2d(width, width, 3, 1, 1, bias=False))
                    self.add_module(f"{name}_norm2", nn.BatchNorm2d(width))
                    if width > before:
                        self.add_module(f"{name}_shortcut", nn.Conv2d(before, width, 1, stride, bias=False))
                        self.add_module(f"{name}_norm3", nn.BatchNorm2d(width))
                    before = width
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.norm(self.conv(x)).relu()
            for name in (f"block{stage}_{block}" for stage in (1, 2, 3) for block in (1, 2, 3)):
                part = {key: getattr(self, f"{name}_{key}") for key in ("conv1", "norm1", "conv2", "norm2")}
                main = part["norm2"](part["conv2"](part["norm1"](part["conv1"](x)).relu()))
                if hasattr(self, f"{name}_shortcut"):
                    x = getattr(self, f"{name}_norm3")(getattr(self, f"{name}_shortcut")(x))
                x = (main + x).relu()
            return self.linear(x.mean((2, 3)))
    return ResNet()


def airbench94(nn):
    class Airbench(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, before = nn.Conv2d(3, 24, 2), 24
            for k, width in zip(range(2, 8), (64, 64, 256, 256, 256, 256), strict=True):
                self.add_module(f"conv{k}", nn.Conv2d(before, width, 3, padding=1, bias=False))
                self.add_module(f"norm{k}", nn.BatchNorm2d(width, eps=1e-12, momentum=0.4))
                before = width
            self.linear = nn.Linear(256, 10, bias=False)

        def forward(self, x):
            x = nn.functional.gelu(self.conv1(x))
            for k in range(2, 8):
                x = getattr(self, f"conv{k}")(x)
                x = nn.functional.gelu(getattr(self, f"norm{k}")(nn.functional.max_pool2d(x, 2) if k % 2 == 0 else x))
            return self.linear(nn.functional.max_pool2d(x, 3).flatten(1)) / 9
    return Airbench()


@pytest.mark.parametrize("maker", [resnet20, airbench94])
def test_a_state_dict_of_pytorch(maker):
    """Evaluation and training give the same logits, loss, gradients and running statistics in float64."""
    import torch
    torch.manual_seed(0)
    twin, rng = maker(torch.nn).double(), np.random.default_rng(0)
    model = getattr(models, maker.__name__)(dtype=np.float64)
    assert list(model.state_dict()) == list(twin.state_dict()) or set(model.state_dict()) == set(twin.state_dict())
    with torch.no_grad():
        for name, buffer in twin.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.load_state_dict({name: value.numpy() for name, value in twin.state_dict().items()})
    images, labels = rng.standard_normal((4, 3, 32, 32)), rng.integers(0, 10, 4)
    with torch.no_grad():
        np.testing.assert_allclose(model(images), twin.eval()(torch.tensor(images)).numpy(), rtol=0, atol=1e-12)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    loss, theirs = step.forward(images, labels), torch.nn.functional.cross_entropy(twin.train()(torch.tensor(images)),
                                                                                   torch.tensor(labels))
    theirs.backward()
    step.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-12)
    gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        if p.trainable:
            # Of 20 layers, each with sums over 4,096 pixels.
            np.testing.assert_allclose(p.grad, gradients[name], rtol=1e-9, atol=1e-10 * abs(gradients[name]).max(), err_msg=name)
    for name, value in twin.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], value.numpy(), rtol=1e-11, atol=1e-12, err_msg=name)
