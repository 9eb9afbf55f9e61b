"""The kernels on NumPy arrays, float32 or float64, in PyTorch's shapes; each forward with its backward.

Where the loops are: `nbcnn/kernels/cpu/<operation>.py`.
"""
import inspect

from nbcnn.kernels.activations import *
from nbcnn.kernels.adam import *
from nbcnn.kernels.adaptive_avgpool2d import *
from nbcnn.kernels.add import *
from nbcnn.kernels.avgpool2d import *
from nbcnn.kernels.batchnorm import *
from nbcnn.kernels.concat import *
from nbcnn.kernels.conv2d import *
from nbcnn.kernels.conv2d_maxpool2d import *
from nbcnn.kernels.dropout import *
from nbcnn.kernels.images import *
from nbcnn.kernels.linear import *
from nbcnn.kernels.losses import *
from nbcnn.kernels.maxpool2d import *
from nbcnn.kernels.sgd import *

__all__ = [name for name, value in list(vars().items()) if inspect.isfunction(value)]
