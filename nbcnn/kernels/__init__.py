"""The kernels on NumPy arrays, float32 or float64, in PyTorch's shapes; each forward with its backward.

Where the loops are: `nbcnn/kernels/cpu/<operation>.py`.
"""
from nbcnn.kernels.activations import (
    gelu_backward,
    gelu_forward,
    leaky_relu_backward,
    leaky_relu_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    tanh_backward,
    tanh_forward,
)
from nbcnn.kernels.avgpool2d import (
    avgpool2d_backward,
    avgpool2d_forward,
    global_avgpool2d_backward,
    global_avgpool2d_forward,
)
from nbcnn.kernels.conv2d import conv2d_backward, conv2d_forward
from nbcnn.kernels.conv2d_maxpool2d import conv2d_maxpool2d_backward, conv2d_maxpool2d_forward
from nbcnn.kernels.images import load_images, normalization_table, normalize_images
from nbcnn.kernels.linear import linear_backward, linear_forward
from nbcnn.kernels.losses import (
    bce_loss_backward,
    bce_loss_forward,
    bce_with_logits_backward,
    bce_with_logits_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    l1_loss_backward,
    l1_loss_forward,
    log_softmax,
    mse_loss_backward,
    mse_loss_forward,
    softmax,
)
from nbcnn.kernels.maxpool2d import maxpool2d_backward, maxpool2d_forward
from nbcnn.kernels.sgd import sgd_step

__all__ = [
    # layers
    "conv2d_forward", "conv2d_backward", "maxpool2d_forward", "maxpool2d_backward", "avgpool2d_forward",
    "avgpool2d_backward", "global_avgpool2d_forward", "global_avgpool2d_backward",
    "relu_forward", "relu_backward", "leaky_relu_forward", "leaky_relu_backward", "tanh_forward", "tanh_backward",
    "sigmoid_forward", "sigmoid_backward", "gelu_forward", "gelu_backward",
    "conv2d_maxpool2d_forward", "conv2d_maxpool2d_backward", "linear_forward", "linear_backward",
    # outputs and losses
    "softmax", "log_softmax", "cross_entropy_forward", "cross_entropy_backward", "mse_loss_forward", "mse_loss_backward",
    "l1_loss_forward", "l1_loss_backward", "bce_loss_forward", "bce_loss_backward", "bce_with_logits_forward",
    "bce_with_logits_backward",
    # the update, and the way in
    "sgd_step", "normalization_table", "normalize_images", "load_images",
]
