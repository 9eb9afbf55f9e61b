"""Where training stands, on the device: so that kernels find their step without the host having to say."""
import functools

import numpy as np

from nbcnn.kernels.cuda.compat import to_device

STEP = 0        # the step whose batch comes next
UPDATE = 1      # the step whose update comes next: the loss moves on to the next batch before the parameters change
STOPPED = 2     # 1 once a loss was not finite: nothing is updated any more


def make_state():
    """An int64 device array (3,) of zeros: the state before the first step."""
    return to_device(np.zeros(3, np.int64))


@functools.cache
def no_training():
    """The state for a call outside of training, which no kernel changes."""
    return make_state()
