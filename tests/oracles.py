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


def _starts(size, span, stride, padding, ceil_mode):
    """The first cells of windows of `span` cells along an axis."""
    end = size + padding
    starts = list(range(-padding, end - span + 1, stride))
    if ceil_mode and starts[-1] + span < end and starts[-1] + stride < size:
        starts.append(starts[-1] + stride)
    return starts


def maxpool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode):
    """y and argmax, all cells of all windows side by side on a last axis. A window without a cell in the image is an error."""
    N, C, H, W = x.shape
    cells, inside = [], []
    for size, k, s, p, d in zip((H, W), kernel_size, stride, padding, dilation, strict=True):
        cells.append(np.add.outer(_starts(size, d * (k - 1) + 1, s, p, ceil_mode), d * np.arange(k)))
        inside.append((cells[-1] >= 0) & (cells[-1] < size))
    (rows, columns), (rows_inside, columns_inside) = cells, inside
    valid = (rows_inside[:, None, :, None] & columns_inside[None, :, None, :]).reshape(len(rows), len(columns), -1)
    assert valid.any(-1).all()
    index = np.where(valid, (rows[:, None, :, None] * W + columns[None, :, None, :]).reshape(valid.shape), 0)
    v = x.reshape(N, C, H * W)[:, :, index]
    nan = np.isnan(v) & valid
    largest = valid & (v == np.where(valid & ~nan, v, -np.inf).max(-1, keepdims=True))
    winner = np.where(nan.any(-1), v.shape[-1] - 1 - nan[..., ::-1].argmax(-1), largest.argmax(-1))[..., None]
    return np.take_along_axis(v, winner, -1)[..., 0], np.take_along_axis(np.broadcast_to(index, v.shape), winner, -1)[..., 0]


def maxpool2d_backward(dy, argmax, x_shape):
    """dx, dy added up where argmax points."""
    N, C, H, W = x_shape
    dx = np.zeros((N, C, H * W), dy.dtype)
    n, c = np.ogrid[:N, :C]
    np.add.at(dx, (n[..., None, None], c[..., None, None], argmax), dy)
    return dx.reshape(x_shape)


def _means(size, dtype, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """For each tap in order, where the windows have that cell in an image with `padding` and a kernel more; their divisors."""
    cells, counts = [], []
    for n, k, s, p in zip(size, kernel_size, stride, padding, strict=True):
        cells.append(np.add.outer(_starts(n, k, s, p, ceil_mode), np.arange(k)))
        counts.append(((cells[-1] < n + p) & (count_include_pad | (cells[-1] >= 0) & (cells[-1] < n))).sum(1))
    (rows, columns), (PH, PW) = cells, padding
    taps = [np.s_[:, :, rows[:, p, None] + PH, columns[:, q] + PW] for p in range(rows.shape[1]) for q in range(columns.shape[1])]
    return taps, (np.outer(*counts) if divisor_override is None else np.array(divisor_override)).astype(dtype)


def avgpool2d_forward(x, kernel_size, stride, padding, *options):
    """y: for each tap, one sum of all windows' cells; zeros outside."""
    taps, divisor = _means(x.shape[2:], x.dtype, kernel_size, stride, padding, *options)
    x = np.pad(x, ((0, 0), (0, 0), *((p, p + k) for p, k in zip(padding, kernel_size, strict=True))))
    return sum((x[tap] for tap in taps), np.zeros((), x.dtype)) / divisor


def avgpool2d_backward(dy, x_shape, kernel_size, stride, padding, *options):
    """dx: the last tap first, since the last windows reach a cell with their first one."""
    taps, divisor = _means(x_shape[2:], dy.dtype, kernel_size, stride, padding, *options)
    (N, C, H, W), (PH, PW), (KH, KW) = x_shape, padding, kernel_size
    dx = np.zeros((N, C, H + 2 * PH + KH, W + 2 * PW + KW), dy.dtype)
    for tap in reversed(taps):
        dx[tap] += dy / divisor
    return dx[:, :, PH:PH + H, PW:PW + W]


def batchnorm_forward(x, weight, bias, eps, mean=None, var=None):
    """y, mean and var, for x with the channels on axis 1."""
    axes, shape = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    mean, var = x.mean(axes) if mean is None else mean, x.var(axes) if var is None else var
    xhat = (x - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape)
    return xhat * weight.reshape(shape) + bias.reshape(shape), mean, var


def batchnorm_backward(dy, x, weight, eps):
    """dx, dweight, dbias, for the whole Jacobian of a channel's values at once: I - 1/M - xhat xhat'/M."""
    def rows(a):
        return np.moveaxis(a, 1, 0).reshape(a.shape[1], -1)
    dys, xs = rows(dy), rows(x)
    deviation = np.sqrt(xs.var(1, keepdims=True) + eps)
    xhat, M = (xs - xs.mean(1, keepdims=True)) / deviation, xs.shape[1]
    jacobian = np.eye(M) - 1 / M - xhat[:, :, None] * xhat[:, None, :] / M
    dx = weight[:, None] / deviation * np.einsum("cij,cj->ci", jacobian, dys)
    dx = np.moveaxis(dx.reshape(x.shape[1], len(x), *x.shape[2:]), 0, 1)
    return dx, (dys * xhat).sum(1), dys.sum(1)


def _covers(size, windows):
    """(windows, size) along an axis: whether a window has a cell."""
    cells, starts = np.arange(size), np.arange(windows)[:, None] * size
    return ((cells + 1) * windows > starts) & (cells * windows < starts + size)


def adaptive_avgpool2d_cells(size, output_size):
    """How many cells each window has."""
    return np.outer(*(_covers(n, windows).sum(1) for n, windows in zip(size, output_size, strict=True)))


def adaptive_avgpool2d_forward(x, output_size):
    """y: the sums are a product with a matrix along each axis."""
    rows, columns = (_covers(n, windows).astype(x.dtype) for n, windows in zip(x.shape[2:], output_size, strict=True))
    return rows @ x @ columns.T / adaptive_avgpool2d_cells(x.shape[2:], output_size).astype(x.dtype)


def adaptive_avgpool2d_backward(dy, x_shape):
    """dx: products with the transposed matrices."""
    rows, columns = (_covers(n, windows).astype(dy.dtype) for n, windows in zip(x_shape[2:], dy.shape[2:], strict=True))
    return rows.T @ (dy / adaptive_avgpool2d_cells(x_shape[2:], dy.shape[2:]).astype(dy.dtype)) @ columns


def conv2d_maxpool2d_forward(x, w, b, padding, pool_size, relu):
    """y and argmax, the sums of each window side by side on a last axis."""
    z = conv2d_forward(x, w, b, (1, 1), padding, (1, 1))
    (N, O, OH, OW), (WH, WW) = z.shape, pool_size
    PH, PW = OH // WH, OW // WW
    v = z[:, :, :PH * WH, :PW * WW].reshape(N, O, PH, WH, PW, WW).swapaxes(3, 4).reshape(N, O, PH, PW, WH * WW)
    nan = np.isnan(v)
    argmax = np.where(nan.any(-1), WH * WW - 1 - nan[..., ::-1].argmax(-1), v.argmax(-1))
    y = np.take_along_axis(v, argmax[..., None], -1)[..., 0]
    nobody = relu & (y <= 0)
    return np.where(nobody, 0, y).astype(x.dtype), np.where(nobody, 255, argmax).astype(np.uint8)


def conv2d_maxpool2d_backward(dy, argmax, x, w, padding, pool_size):
    """dx, dw, db: dy spread over the windows, zero but where a cell won, and the convolution's gradients of that."""
    (N, O, PH, PW), (WH, WW) = dy.shape, pool_size
    OH, OW = (x.shape[2 + a] + 2 * padding[a] - w.shape[2 + a] + 1 for a in (0, 1))
    spread = np.where(np.arange(WH * WW) == argmax[..., None], dy[..., None], 0)
    dz = np.zeros((N, O, OH, OW), dy.dtype)
    dz[:, :, :PH * WH, :PW * WW] = spread.reshape(N, O, PH, PW, WH, WW).swapaxes(3, 4).reshape(N, O, PH * WH, PW * WW)
    return conv2d_backward(dz, x, w, (1, 1), padding, (1, 1))


def sgd(param, grads, lr, momentum, dampening, weight_decay, nesterov, maximize):
    """Parameter and momentum buffer after a step for each gradient."""
    buffer = None
    for grad in grads:
        g = (-1) ** maximize * grad + weight_decay * param
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        step = g + momentum * buffer if nesterov else buffer if momentum else g
        param = param - lr * step
    return param, buffer


def adam(param, grads, lr, betas, eps, weight_decay, decoupled_weight_decay, maximize):
    """Parameter and both averages after a step for each gradient, in float64."""
    param, (m, v), (beta1, beta2) = param.astype(float), np.zeros((2, *param.shape)), betas
    for t, grad in enumerate(grads, 1):
        g = (-1) ** maximize * grad.astype(float)
        if decoupled_weight_decay:
            param = param - lr * weight_decay * param
        else:
            g = g + weight_decay * param
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g ** 2
        param = param - lr * (m / (1 - beta1 ** t)) / (np.sqrt(v / (1 - beta2 ** t)) + eps)
    return param, m, v


# Losses: a function returns l, element by element, and dl/dx.

def l1_loss(x, t):
    return np.abs(x - t), np.sign(x - t)


def mse_loss(x, t):
    return (x - t) ** 2, 2 * (x - t)


def bce_loss(x, t, weight=1):
    with np.errstate(divide="ignore"):
        positive, negative = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
    return -weight * (t * positive + (1 - t) * negative), weight * (x - t) / np.maximum(x * (1 - x), 1e-12)


def bce_with_logits(x, t, weight=1, pos_weight=1):
    """The two halves apart: -log sigmoid(x) = log(1 + exp(-x)) for positives, -log sigmoid(-x) for negatives."""
    positive, negative = np.logaddexp(0, -x), np.logaddexp(0, x)
    return (weight * (pos_weight * t * positive + (1 - t) * negative),
            weight * ((1 - t) * np.exp(-positive) - pos_weight * t * np.exp(-negative)))


def cross_entropy(x, t, weight=None, ignore_index=-100, label_smoothing=0.0):
    """Both kinds of targets as one-hot-like distributions q; returns the mean's divisor too."""
    axis = min(1, x.ndim - 1)
    x = np.moveaxis(x, axis, -1)
    C = x.shape[-1]
    w = np.ones(C) if weight is None else np.asarray(weight)
    if t.ndim == x.ndim:
        q = np.moveaxis(t, axis, -1)
        kept, divisor = np.ones(q.shape[:-1]), q[..., 0].size
    else:
        kept = (t != ignore_index).astype(float)
        y = np.where(kept, t, 0)
        q, divisor = np.eye(C)[y], (w[y] * kept).sum()
    v = w * ((1 - label_smoothing) * q + label_smoothing / C) * kept[..., None]
    a = x - np.logaddexp.reduce(x, -1, keepdims=True)
    return -(v * a).sum(-1), np.moveaxis(np.exp(a) * v.sum(-1, keepdims=True) - v, -1, axis), divisor


def reduce_loss(losses, gradient, reduction, divisor, dloss):
    """The reduced loss, and dx for the upstream gradient dloss; the mean of nothing is NaN, its gradient zero."""
    if reduction == "none":
        extra = gradient.ndim - losses.ndim     # the class axis, which the loss lacks
        return losses, gradient * (np.expand_dims(dloss, min(1, losses.ndim)) if extra else dloss)
    if reduction == "sum":
        divisor = 1
    return (losses.sum() / divisor, gradient * dloss / divisor) if divisor else (np.nan, np.zeros_like(gradient))


def central_differences(f, x, dy, step=1e-6):
    """The gradient of sum(dy * f(x)) with respect to x, column by column of the Jacobian, in float64."""
    dx = np.empty(x.shape)
    for k in np.ndindex(x.shape):
        low, high = np.array(x), np.array(x)
        low[k] -= step
        high[k] += step
        dx[k] = np.sum(dy * (f(high) - f(low))) / (high[k] - low[k])
    return dx


def load_images(images, index, flip, shift, table, border="zero", cutout=0, corners=None):
    """The images asked for: mirrored, cut from the middle of a wide frame at the opposite of their shifts, then looked up.

    The frame is black or their reflection. A square of each is zero where there is a cutout.
    """
    H, W = images.shape[2:]
    p, q = (H, W) if border == "zero" else (H - 1, W - 1)
    x = np.where(flip[:, None, None, None], images[index, :, :, ::-1], images[index])
    frame = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)), mode="constant" if border == "zero" else "reflect")
    for b, (dy, dx) in enumerate(np.broadcast_to(shift, (len(x), 2))):
        x[b] = frame[b, :, p - dy:p - dy + H, q - dx:q - dx + W]
    y, (i, j) = table[np.arange(x.shape[1])[:, None, None], x], np.indices((H, W))
    for b, (top, left) in enumerate(np.broadcast_to(corners, (len(x), 2)) if cutout else ()):
        y[b, :, (top <= i) & (i < top + cutout) & (left <= j) & (j < left + cutout)] = 0
    return y


def philox4x32(counter, key, rounds=10):
    """The four random numbers of arrays of four words of counters and a key of two words, as Random123 defines them."""
    words = [np.asarray(word, np.uint32) for word in counter]
    for k in range(rounds):
        products = [np.multiply(words[i], multiplier, dtype=np.uint64) for i, multiplier in ((2, 0xCD9E8D57), (0, 0xD2511F53))]
        keys = [np.uint32((word + k * add) % 2**32) for word, add in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        high, low = zip(*((product >> 32, product % 2**32) for product in products), strict=True)
        words = [(high[0] ^ words[1] ^ keys[0]).astype(np.uint32), low[0].astype(np.uint32),
                 (high[1] ^ words[3] ^ keys[1]).astype(np.uint32), low[1].astype(np.uint32)]
    return words


def dropout_mask(N, cells, p, seed, layer, step):
    """What stays: uint8 (N, *cells). All cells have a counter; its words are those of four samples."""
    group, cell = np.meshgrid(np.arange(-(-N // 4)), np.arange(np.prod(cells, dtype=int)), indexing="ij")
    words = philox4x32((cell, group, np.full_like(cell, step % 2**32), np.full_like(cell, layer)), (seed % 2**32, seed >> 32))
    numbers = np.stack(words, 1).reshape(-1, *cells)[:N]
    return (numbers.astype(float) >= np.rint(p * 2**32)).astype(np.uint8)
