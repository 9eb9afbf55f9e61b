"""Every layer with good arguments, and those of its functions in `nbcnn.kernels`. A new layer joins the tests by its lines here.

A function of each element has a line in `activations.py` instead.
"""
from typing import NamedTuple

import numpy as np
from own_layers import Scale, Softplus, Upsample2d

import nbcnn

import activations


class Case(NamedTuple):
    """A layer, all its constructor's arguments by name, and the shape of a sample it takes, or those of its several inputs."""
    layer: type
    arguments: dict
    shape: tuple

    @property
    def shapes(self):
        """The shapes of its inputs."""
        return (self.shape,) if self.layer.inputs == 1 else self.shape

    def __str__(self):
        inputs = () if self.layer.inputs == 1 else (len(self.shape),)
        return "-".join(map(str, (self.layer.__name__, *self.arguments.values(), *inputs)))

    def make(self):
        return self.layer(**self.arguments)


LAYERS = [
    Case(nbcnn.Conv2d, dict(in_channels=3, out_channels=4, kernel_size=3, stride=1, padding=0, dilation=1, groups=1,
                             bias=True), (3, 8, 8)),
    Case(nbcnn.Conv2d, dict(in_channels=3, out_channels=4, kernel_size=3, stride=2, padding=1, dilation=2, groups=1,
                             bias=True), (3, 9, 8)),
    Case(nbcnn.Conv2d, dict(in_channels=4, out_channels=4, kernel_size=3, stride=2, padding=1, dilation=1, groups=4,
                             bias=True), (4, 9, 8)),
    Case(nbcnn.Conv2d, dict(in_channels=4, out_channels=6, kernel_size=(2, 3), stride=1, padding="same", dilation=1, groups=2,
                             bias=True), (4, 6, 5)),
    Case(nbcnn.BatchNorm2d, dict(num_features=3, eps=1e-3, momentum=0.1, affine=True, track_running_stats=True), (3, 4, 5)),
    Case(nbcnn.BatchNorm2d, dict(num_features=8, eps=1e-5, momentum=None, affine=False, track_running_stats=False), (8, 4, 4)),
    Case(nbcnn.BatchNorm1d, dict(num_features=6, eps=1e-5, momentum=None, affine=True, track_running_stats=True), (6,)),
    Case(nbcnn.MaxPool2d, dict(kernel_size=2, stride=None, padding=0, dilation=1, ceil_mode=False), (3, 8, 8)),
    Case(nbcnn.AvgPool2d, dict(kernel_size=2, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
                               divisor_override=None), (3, 8, 8)),
    Case(nbcnn.GlobalAvgPool2d, {}, (3, 8, 8)),
    Case(nbcnn.AdaptiveAvgPool2d, dict(output_size=(3, None)), (3, 8, 6)),
    Case(nbcnn.Flatten, {}, (3, 4, 4)),
    Case(nbcnn.Linear, dict(in_features=5, out_features=3, bias=True), (5,)),
    *(Case(case.layer, case.arguments, (3, 4, 4)) for case in activations.CASES),
    Case(nbcnn.Add, {}, ((3, 4, 5), (3, 4, 5))),
    Case(nbcnn.Add, {}, ((6,), (6,), (6,))),
    Case(nbcnn.Concat, {}, ((3, 4, 5), (1, 4, 5))),
    Case(nbcnn.Concat, {}, ((6,), (3,), (4,))),
    Case(nbcnn.Identity, {}, (3, 4, 5)),
    Case(nbcnn.Dropout, {"p": 0.25}, (3, 4, 5)),
    Case(nbcnn.Dropout, {"p": 0.5}, (24,)),
    Case(nbcnn.Dropout2d, {"p": 0.25}, (8, 4, 4)),
]
# From a file outside the package; for the CPU alone.
OWN_LAYERS = [
    Case(Softplus, {"beta": 1.0}, (3, 4, 4)), Case(Softplus, {"beta": 2.5}, (6,)), Case(Upsample2d, {"scale": 2}, (3, 4, 5)),
    Case(Upsample2d, {"scale": 3}, (16, 2, 4)), Case(Scale, {"channels": 3}, (3, 4, 5)), Case(Scale, {"channels": 6}, (6,)),
]


def f32(rng, *shape):
    return rng.standard_normal(shape, np.float32)


# By the function's name: good arguments, made of a random generator.
KERNELS = {
    "conv2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8), w=f32(rng, 4, 3, 3, 3), b=f32(rng, 4), stride=1, padding=1,
                                       dilation=1, groups=1),
    "conv2d_backward": lambda rng: dict(dy=f32(rng, 2, 4, 8, 8), x=f32(rng, 2, 3, 8, 8), w=f32(rng, 4, 3, 3, 3), stride=1,
                                        padding=1, dilation=1, groups=1, need_dx=True),
    "maxpool2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8), kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False),
    "maxpool2d_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), argmax=rng.integers(0, 64, (2, 3, 4, 4)), x_shape=(2, 3, 8, 8)),
    "avgpool2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8), kernel_size=2, stride=2, padding=0, ceil_mode=False,
                                          count_include_pad=True, divisor_override=None),
    "avgpool2d_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), x_shape=(2, 3, 8, 8), kernel_size=2, stride=2, padding=0,
                                           ceil_mode=False, count_include_pad=True, divisor_override=None),
    "adaptive_avgpool2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8), output_size=3),
    "adaptive_avgpool2d_backward": lambda rng: dict(dy=f32(rng, 2, 3, 3, 3), x_shape=(2, 3, 8, 8)),
    "global_avgpool2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8)),
    "global_avgpool2d_backward": lambda rng: dict(dy=f32(rng, 2, 3, 1, 1), x_shape=(2, 3, 8, 8)),
    "batchnorm_forward": lambda rng: dict(x=f32(rng, 2, 3, 4, 4), weight=f32(rng, 3), bias=f32(rng, 3), eps=1e-5),
    "batchnorm_evaluate": lambda rng: dict(x=f32(rng, 2, 3, 4, 4), mean=f32(rng, 3), var=f32(rng, 3) ** 2, weight=f32(rng, 3),
                                           bias=f32(rng, 3), eps=1e-5),
    "batchnorm_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), x=f32(rng, 2, 3, 4, 4), mean=f32(rng, 3), var=f32(rng, 3) ** 2,
                                           weight=f32(rng, 3), eps=1e-5, need_dx=True),
    "conv2d_maxpool2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 8, 8), w=f32(rng, 4, 3, 3, 3), b=f32(rng, 4), padding=1,
                                                 pool_size=2, relu=True),
    "conv2d_maxpool2d_backward": lambda rng: dict(
        dy=f32(rng, 2, 4, 4, 4), argmax=rng.integers(0, 4, (2, 4, 4, 4), dtype=np.uint8), x=f32(rng, 2, 3, 8, 8),
        w=f32(rng, 4, 3, 3, 3), padding=1, pool_size=2, relu=False, need_dx=True),
    "linear_forward": lambda rng: dict(x=f32(rng, 3, 5), w=f32(rng, 4, 5), b=f32(rng, 4)),
    "linear_backward": lambda rng: dict(dy=f32(rng, 3, 4), x=f32(rng, 3, 5), w=f32(rng, 4, 5), need_dx=True),
    "add_forward": lambda rng: dict(xs=[f32(rng, 2, 3, 4, 4), f32(rng, 2, 3, 4, 4)]),
    "add_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), count=3),
    "concat_forward": lambda rng: dict(xs=[f32(rng, 2, 3, 4, 4), f32(rng, 2, 1, 4, 4)]),
    "concat_backward": lambda rng: dict(dy=f32(rng, 2, 4, 4, 4), channels=(3, 1)),
    "dropout_forward": lambda rng: dict(x=f32(rng, 2, 3, 4, 4), p=0.25, seed=1, layer=2, step=3),
    "dropout_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), mask=rng.integers(0, 2, (2, 3, 4, 4), np.uint8), p=0.25),
    "dropout2d_forward": lambda rng: dict(x=f32(rng, 2, 3, 4, 4), p=0.25, seed=1, layer=2, step=3),
    "dropout2d_backward": lambda rng: dict(dy=f32(rng, 2, 3, 4, 4), mask=rng.integers(0, 2, (2, 3), np.uint8), p=0.25),
    **{f"{case.name}_{way}": lambda rng, case=case, arrays=arrays: {name: f32(rng, 2, 3, 4) for name in arrays} | case.arguments
       for case in activations.CASES for way, arrays in (("forward", ["x"]), ("backward", ["dy", case.reads]))},
}
