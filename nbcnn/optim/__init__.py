"""Optimizers, and learning rates that change from step to step.

A schedule is a function from the number of a step, counted from 0, to its learning rate:

    learning_rate = nbcnn.optim.cosine(0.1, total=1000)
    for k, (images, labels) in enumerate(batches):
        optimizer.lr = learning_rate(k)
        step.train_step(images, labels, optimizer)

    sgd, adam       SGD, Adam, AdamW; optimizer: what they have in common
    average         Lookahead and EMA: moving averages of a model's numbers
    clip            clip_grad_norm_
    schedules       one_cycle, cosine, piecewise and others, and ReduceLROnPlateau
"""
from nbcnn.instead import say_instead
from nbcnn.optim.adam import Adam, AdamW
from nbcnn.optim.average import EMA, Lookahead
from nbcnn.optim.clip import clip_grad_norm_
from nbcnn.optim.optimizer import Optimizer
from nbcnn.optim.schedules import ReduceLROnPlateau, constant, cosine, multistep, one_cycle, piecewise, step
from nbcnn.optim.sgd import RECIPE, SGD

__getattr__ = say_instead("nbcnn.optim", globals())
