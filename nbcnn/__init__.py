"""nbcnn: convolutional networks whose every forward and backward pass is a Numba function that a person can read.

    kernels     the operations on NumPy arrays, forward and backward
    layers      Conv2d, MaxPool2d, ReLU, Linear and others, and Layer and Activation for your own
    model       Network and Sequential, which hold them; models: ready-made ones; init: initial values
    losses      L1Loss, MSELoss, CrossEntropyLoss, BCELoss, BCEWithLogitsLoss
    optim       SGD, Adam, AdamW, moving averages and learning-rate schedules
    checkpoint  save and load, atomically; `nbcnn.save(model, path)` and `nbcnn.load(path)` for a model alone
    scheduler   BackpropScheduler: plan, forward, loss, backward
    check       check_gradients: gradients compared with differences
    memory      how much of it buffers may take
    profile     where the time of a training step goes, and the processor's peak
    datasets    CIFAR-10, the built-in shapes, folders of images, and the loader
    pictures    files of any kind and size as a network takes them
    fit         the training loop, with callbacks; progress: how far it is; find_lr: a learning-rate range test
    tensorboard curves, histograms, images and the graph, through a SummaryWriter
    evaluation  accuracy, precision, recall, confusion matrix: `nbcnn.evaluate(model, dataset)`
    views       mean_of_views: outputs averaged over an image, its mirror image and more

The command `nbcnn`, or `python -m nbcnn`, has train, predict, evaluate and cache.
"""
import nbcnn.interrupts  # first, so that Ctrl-C ends the imports that follow, which take long
from nbcnn import checkpoint, datasets, init, kernels, models, optim, pictures, tensorboard
from nbcnn.check import check_gradients
from nbcnn.checkpoint import load_model as load
from nbcnn.checkpoint import save_model as save
from nbcnn.evaluate import evaluate
from nbcnn.evaluation import Evaluation
from nbcnn.find_lr import find_lr
from nbcnn.fit import NonFiniteLoss, State, fit
from nbcnn.instead import say_instead
from nbcnn.layers import *
from nbcnn.losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss
from nbcnn.memory import set_max_memory
from nbcnn.model import Network, Sequential
from nbcnn.optim import EMA, SGD, Adam, AdamW, Lookahead, clip_grad_norm_
from nbcnn.parameter import Parameter, Statistic
from nbcnn.progress import Progress
from nbcnn.scheduler import BackpropScheduler

__version__ = "0.1.0"
__getattr__ = say_instead("nbcnn", globals())
