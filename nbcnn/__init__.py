"""nbcnn: convolutional networks whose every forward and backward pass is a Numba function that a person can read.

    kernels     the operations on NumPy arrays, forward and backward
    layers      Conv2d, MaxPool2d, ReLU, Flatten, Linear, and the Sequential model that holds them
    losses      L1Loss, MSELoss, CrossEntropyLoss, BCELoss, BCEWithLogitsLoss
    optim       SGD and learning-rate schedules
    checkpoint  save and load, atomically
    scheduler   BackpropScheduler: plan, forward, loss, backward
    profile     where the time of a training step goes, and the processor's peak
    datasets    CIFAR-10, the built-in shapes, and the loader
    fit         the training loop; `python -m nbcnn.train` is its command line
"""
from nbcnn import checkpoint, datasets, kernels, models, optim
from nbcnn.fit import NonFiniteLoss, Progress, State, fit
from nbcnn.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU
from nbcnn.losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss
from nbcnn.model import Sequential
from nbcnn.optim import SGD
from nbcnn.parameter import Parameter
from nbcnn.scheduler import BackpropScheduler

__version__ = "0.1.0"
