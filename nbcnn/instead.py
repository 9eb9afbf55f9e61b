"""Names that PyTorch has and nbcnn has not, each with what to write here."""
import sys

BF16 = "precision='bf16' is an argument of nbcnn.BackpropScheduler, nbcnn.fit and model.predict"
NAMES = {
    "nbcnn": {
        "Module": "a network is nbcnn.Sequential([layer, ...]); a layer of your own derives from nbcnn.Activation or nbcnn.Layer",
        "nn": "layers and losses are in nbcnn itself: import nbcnn as nn",
        "functional": "functions on arrays are in nbcnn.kernels, as conv2d_forward and conv2d_backward",
        "DataLoader": "write nbcnn.datasets.Loader(dataset, batch_size)", "Dataset": "write nbcnn.datasets.Dataset",
        "Softmax": "nbcnn.CrossEntropyLoss has it, and takes logits; nbcnn.kernels.softmax(logits) gives probabilities",
        "NLLLoss": "nbcnn.CrossEntropyLoss takes logits",
        "no_grad": "nothing records what is computed: model(images) needs no such block",
        "tensor": "arrays are NumPy's: write numpy.array", "manual_seed": "seeds are arguments: nbcnn.Sequential(..., seed=1)",
        "cuda": "write model.to('cuda')", "device": "write model.to('cuda') or model.to('cpu')",
        **dict.fromkeys(("autocast", "GradScaler", "amp", "bfloat16"), BF16),
        **dict.fromkeys(("lr_scheduler", "ReduceLROnPlateau"), "schedules are in nbcnn.optim, and so is ReduceLROnPlateau"),
    },
    "nbcnn.optim": {
        **dict.fromkeys(("RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "LBFGS", "Rprop", "SparseAdam"),
                        "the optimizers are SGD, Adam and AdamW"),
        "lr_scheduler": "schedules are functions here: one_cycle, cosine, step, multistep, piecewise, constant; and there is "
                        "ReduceLROnPlateau",
        "StepLR": "write nbcnn.optim.step", "OneCycleLR": "write nbcnn.optim.one_cycle",
        "MultiStepLR": "write nbcnn.optim.multistep", "LinearLR": "write nbcnn.optim.piecewise",
        "CosineAnnealingLR": "write nbcnn.optim.cosine", "LambdaLR": "a schedule is a function of the step",
        "swa_utils": "write nbcnn.optim.EMA(model, decay)", "clip_grad_norm": "write nbcnn.optim.clip_grad_norm_",
    },
    "nbcnn.datasets": {
        "CIFAR10": "write train, test = nbcnn.datasets.cifar10(folder, download=True)",
        "CIFAR100": "write train, test = nbcnn.datasets.cifar100(folder, download=True)",
        "MNIST": "write train, test = nbcnn.datasets.mnist(folder, download=True)",
        "FashionMNIST": "write train, test = nbcnn.datasets.fashion_mnist(folder, download=True)",
        "ImageFolder": "write nbcnn.datasets.folder(path)", "DataLoader": "write nbcnn.datasets.Loader(dataset, batch_size)",
    },
    "model": {
        "children": "write model.layers.values()", "modules": "write model.layers.values()",
        "named_children": "write model.layers.items()", "forward": "write model(images)",
        "add_module": "write nbcnn.Sequential([...]) with all layers", "append": "write nbcnn.Sequential([...]) with all layers",
        **dict.fromkeys(("bfloat16", "half"), BF16),
        "zero_grad": "write optimizer.zero_grad()", "cuda": "write model.to('cuda')", "cpu": "write model.to('cpu')",
    },
}


def nearest(name, names):
    """A hint at the name that was probably meant; "" where none is similar."""
    import difflib  # only where something is wrong
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def say_instead(place, names=()):
    """A module's `__getattr__`: it raises an AttributeError that says what to write instead.

    For a name of the table it is an ImportError in `from nbcnn import Module`, which shows that as it is, unlike an AttributeError.
    """
    def missing(name):
        if name in NAMES[place]:
            imports = sys._getframe(1).f_code.co_name == "_handle_fromlist"         # of importlib
            raise (ImportError if imports else AttributeError)(f"{place} has no {name}: {NAMES[place][name]}")
        raise AttributeError(f"{place} has no {name}{'' if name.startswith('_') else nearest(name, names)}")
    return missing
