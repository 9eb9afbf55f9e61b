"""Convolution in groups on the CPU: a convolution for each group of channels, by the kernels of `conv2d.py`."""
from typing import NamedTuple

from nbcnn.kernels.cpu.conv2d import Conv2d
from nbcnn.kernels.operation import Operation


class Channels(NamedTuple):
    """A Buffer's channels from one on, in its memory: what kernels read of a Buffer. Pixels are as far apart as there."""
    array: object
    shape: tuple
    step: int
    zeros: int

    @classmethod
    def of(cls, buffer, first):
        return cls(buffer.array[first:], buffer.shape, buffer.step, buffer.zeros)


class Conv2dGroups(Operation):
    """A convolution whose channels and outputs are divided into groups: outputs see the channels of their own group.

    Weights are (O, KH, KW, C/groups), flat, those of a group one after another. The groups take turns in one workspace.
    """

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, groups, dtype):
        (C, *x_size), (O, *self.y_size) = x_shape, y_shape
        self.groups, self.C, self.O = groups, C // groups, O // groups
        self.conv = Conv2d((self.C, *x_size), (self.O, *self.y_size), kernel_size, stride, padding, dilation, dtype)

    def parts(self, n):
        return self.conv.parts(n)

    def reserve(self, batch):
        self.conv.reserve(batch)

    def bytes(self, batch):
        return self.conv.bytes(batch)

    def of_groups(self, vectors):
        """For each group, its part of each of these vectors of weights and of biases, which may be None."""
        for group in range(self.groups):
            outputs = slice(group * self.O, (group + 1) * self.O)
            yield group, tuple(v if v is None else v.reshape(self.groups * self.O, -1)[outputs].reshape(-1) for v in vectors)

    def forward(self, n, y, x, params):
        return [call for group, own in self.of_groups(params)
                for call in self.conv.forward(n, Channels.of(y, group * self.O), Channels.of(x, group * self.C), own)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        calls = []
        for group, (*own_dparams, w, b) in self.of_groups((*dparams, *params)):
            own_dx, own_x = (buffer and Channels.of(buffer, group * self.C) for buffer in (dx, x))
            calls += self.conv.backward(n, own_dx, own_dparams, Channels.of(dy, group * self.O), own_x, None, (w, b), add)
        return calls
