"""What a backend's operations have in common, and a call of a kernel."""
from typing import NamedTuple

NOBODY = 255    # the cell of a pooling window that nobody won, as a ReLU gave 0: the same byte on every device


class Call(NamedTuple):
    """A kernel and what it is called with."""
    kernel: object
    arguments: tuple
    flop: int = 0       # the multiplications and additions of the formula, where these are its work; padding included


class Operation:
    """The computation of a layer for samples of one shape.

    forward and backward run nothing: they return lists of calls, which the scheduler keeps, runs and times.

    Attributes
    ----------
    x_border, dy_border : pair of ints
        Rows and columns of zeros that forward reads around x, and backward around dy; of use to a backend that lays them out.
    """
    x_border = dy_border = (0, 0)
    shares = False      # whether y and dy are x and dx in another shape: the same memory, and nothing to compute

    def parts(self, n):
        """Into how many partial sums the gradients of n samples are split: it follows from the shapes alone."""
        return 1

    def reserve(self, batch):
        """Allocate what is kept from forward to backward, and workspace, for up to `batch` samples."""

    def bytes(self, batch):
        """About how many bytes `reserve` allocates."""
        return 0

    def forward(self, n, y, x, params):
        """The calls that compute y of the first n samples.

        Parameters
        ----------
        n : int
        y, x : Buffer
            Of y the interior is written, and all of it.
        params : tuple of flat arrays
            (weight, bias), the bias None where there is none; () without parameters.
        """
        raise TypeError(f"{type(self).__name__}: an operation defines forward")

    def forward_with_loss(self, n, y, x, params, loss):
        """The calls of forward and then `loss`, the call of a loss of y."""
        return [*self.forward(n, y, x, params), loss]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """The calls that compute dx and dparams of the first n samples, after a forward of the same n.

        Parameters
        ----------
        n : int
        dx : Buffer or None
            The interior is written, and all of it; None when nobody needs it.
        dparams : tuple of flat arrays
            Where the gradients of params go.
        dy, x, y : Buffer
        params : tuple of flat arrays
        add : tuple of bool
            Whether to add to each of dparams instead of overwriting it.
        """
        raise TypeError(f"{type(self).__name__}: an operation defines backward")
