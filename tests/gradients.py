"""Gradients of whole networks against differences of the loss."""
import numpy as np
import pytest


def check_directional_gradients(step, images, targets, rng):
    """d/dh loss(parameter + h*u) at 0 = <grad, u>, for each parameter of a float64 network and a random direction u.

    Losses are below 50; where there are kinks, their inputs lie further than h from them.
    """
    step.forward(images, targets)
    step.backward()
    for name, p in step.model.named_parameters():
        u, value, h, losses = rng.standard_normal(p.shape), p.data.copy(), 1e-6, []
        for side in (h, -h):
            p.data[...] = value + side * u
            losses.append(step.forward(images, targets))
        p.data[...] = value
        # float64: truncation h^2 = 1e-12 and rounding 1e-16 * loss / h = 1e-9.
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx((p.grad * u).sum(), rel=1e-7, abs=1e-8), name


def check_every_element(forward, arrays, gradients, dy):
    """Central differences of sum(dy * forward()) by every element of arrays, in which forward is linear: a step of 1 is exact."""
    for array, gradient in zip(arrays, gradients, strict=True):
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1
            above = forward()
            array[index] = value - 1
            below = forward()
            array[index] = value
            # Sums of at most 160 products of order 1 in float64: 1e-12 is a few hundred roundings.
            assert abs((dy * (above - below)).sum() / 2 - gradient[index]) < 1e-12
