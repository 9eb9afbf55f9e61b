"""nbcnn: convolutional networks whose every forward and backward pass is a Numba function that a person can read."""
__version__ = "0.1.0"
