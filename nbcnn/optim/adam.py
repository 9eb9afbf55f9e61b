"""Adam and AdamW: steps as long as the gradient is steady."""
from nbcnn.kernels.adam import adam_options, adam_rates, beta_pair
from nbcnn.kernels.arguments import flag, rate
from nbcnn.optim.optimizer import Optimizer, option


class Adam(Optimizer):
    """Adam; `nbcnn.kernels.adam_step` says what an update is.

    Parameters
    ----------
    params : list of Parameter, or list of dict
        All parameters of one model, or some of them; or groups of them, as of `nbcnn.optim.Optimizer`.
    lr : float
        Learning rate. The attribute `lr` may be set before every step.
    betas : pair of floats
        How much of the averages of gradients and of their squares each step keeps.
    eps, weight_decay : float
    amsgrad : bool
        Only False.
    maximize : bool

    Raises
    ------
    TypeError
        When `params` holds something else, or a rate is no number.
    ValueError
        When `params` is empty, holds a parameter twice or mixes models; when a group has an option that is none of these; when a
        rate is negative or not finite, or a beta outside [0, 1); with amsgrad.

    Notes
    -----
    A parameter whose grad is None stays as it is, and its number of steps stays behind the others'.

    Source: PyTorch's torch.optim.Adam.
    """
    slots = ("exp_avg", "exp_avg_sq")
    counts_steps = True
    decoupled = False       # whether weights decay by a factor of their own instead of in the gradient
    betas, eps, weight_decay, maximize = option("betas"), option("eps"), option("weight_decay"), option("maximize")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, *, maximize=False):
        if flag(amsgrad, "amsgrad"):
            raise ValueError(f"amsgrad: expected False, as {type(self).__name__} is here without it, got True")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize))

    def checked(self, group):
        dtype = self.vector.data.dtype
        return {"betas": beta_pair(group["betas"]), "eps": rate(group["eps"], "eps", dtype),
                "weight_decay": rate(group["weight_decay"], "weight_decay", dtype), "maximize": flag(group["maximize"], "maximize")}

    def kernel_options(self, group):
        return adam_options(self.vector.data.dtype, group["betas"], group["eps"], group["weight_decay"], self.decoupled,
                            group["maximize"])

    def update(self, run, lr):
        rates = adam_rates(self._counts.get(run.first, 0) + 1, lr, run.group["betas"], run.group["weight_decay"], self.decoupled)
        self.vector.backend.adam_update(run.data, *run.slots, run.grad, rates, run.options)

    def updated(self, params):
        for parameter in params:
            self._counts[parameter] = self._counts.get(parameter, 0) + 1


class AdamW(Adam):
    """Adam whose weights decay by themselves, param = param - lr * weight_decay * param, instead of in the gradient.

    Parameters, exceptions and notes as of `Adam`; weight_decay is 1e-2 by default.

    Source: PyTorch's torch.optim.AdamW.
    """
    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, *, maximize=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
