"""Gradients of whole networks against differences of the loss."""
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
