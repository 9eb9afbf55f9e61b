"""Independent NumPy forms of the operations, one function each: whole-array arithmetic, no loop over pixels, no nbcnn."""
import numpy as np


def _taps(x, w_shape, stride, padding, dilation):
    """x padded with zeros, and for each tap (p, q) the slices of it that the output pixels read under that tap."""
    KH, KW = w_shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    OH, OW = ((x.shape[2 + a] - dilation[a] * (w_shape[2 + a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    slices = {(p, q): np.s_[:, :, p * dilation[0]:p * dilation[0] + stride[0] * (OH - 1) + 1:stride[0],
                            q * dilation[1]:q * dilation[1] + stride[1] * (OW - 1) + 1:stride[1]]
              for p in range(KH) for q in range(KW)}
    return x, slices, (OH, OW)


def conv2d_forward(x, w, b, stride, padding, dilation):
    """y (N, O, OH, OW): for each tap, one product of all pixels with one matrix."""
    x, slices, size = _taps(x, w.shape, stride, padding, dilation)
    y = np.zeros((len(x), len(w), *size), x.dtype)
    for (p, q), read in slices.items():
        y += np.einsum("ncij,oc->noij", x[read], w[:, :, p, q])
    return y + b[:, None, None]


def conv2d_backward(dy, x, w, stride, padding, dilation):
    """dx, dw, db, by scattering each tap's product back to where forward read."""
    padded, slices, _ = _taps(x, w.shape, stride, padding, dilation)
    dx, dw = np.zeros_like(padded), np.zeros_like(w)
    for (p, q), read in slices.items():
        dw[:, :, p, q] = np.einsum("ncij,noij->oc", padded[read], dy)
        dx[read] += np.einsum("noij,oc->ncij", dy, w[:, :, p, q])
    H, W = x.shape[2:]
    return dx[:, :, padding[0]:padding[0] + H, padding[1]:padding[1] + W], dw, dy.sum((0, 2, 3))
