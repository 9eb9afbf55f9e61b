"""Where arrays live and what computes on them, seen from a machine without a GPU."""
import subprocess
import sys

import numpy as np
import pytest

import nbcnn
from nbcnn.kernels import cpu
from nbcnn.kernels.backend import as_array, backend_of, load_backend, on_device


class OnDevice:
    """Stands for an array of any library whose memory is a GPU's."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (2,), "typestr": "<f4", "data": (0, False), "version": 3}


class Both(np.ndarray):
    """An array of NumPy, whatever else it says it is."""
    __cuda_array_interface__ = OnDevice.__cuda_array_interface__


def test_on_device():
    assert on_device(OnDevice())
    assert not any(map(on_device, (np.ones(2), np.ones(2).view(Both), [1.0], 1.0, None, "cuda")))


def test_as_array():
    x = np.ones(3)
    assert as_array(x, "x") is x and as_array([1, 2], "x").tolist() == [1, 2] and as_array(2.5, "x").shape == ()


def test_backend_of():
    assert backend_of(x=np.ones(2), w=[1.0], b=None) is cpu is backend_of() is backend_of(x=None)
    with pytest.raises(TypeError, match=r"^x, b: expected device arrays, as w, dy is one; got NumPy arrays or lists\. Nothing is"):
        backend_of(x=np.ones(2), w=OnDevice(), b=[1.0], dy=OnDevice(), other=None)


@pytest.mark.parametrize("name", ["nonsense", "CPU", "cuda:0", "", None])
def test_a_device_that_is_none(name):
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(2, 2)])
    for function in (load_backend, model.to):
        with pytest.raises(ValueError, match=f"^device: expected one of 'cpu', 'cuda', got {name!r}$"):
            function(name)
    assert model.device == "cpu" and load_backend("cpu") is cpu


def run(code):
    """The last line that Python code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_importing_and_training_leave_cuda_alone():
    """`import nbcnn`, and a step on the CPU, import of numba.cuda what numba itself does, and nothing of nbcnn's GPU backend."""
    cuda = "sorted(name for name in sys.modules if name.startswith(('numba.cuda', 'numba_cuda', 'cuda', 'nbcnn.kernels.cuda')))"
    numba_alone = run(f"import sys, numba; print({cuda})")
    step = """
import sys, numpy as np, nbcnn, nbcnn.train
model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(2, 2)])
step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.MSELoss()), nbcnn.SGD(model.parameters(), lr=0.1)
step.train_step(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), optimizer)
model.to("cpu")
"""
    assert run(step + f"print({cuda})") == numba_alone


def test_without_numba_cuda_the_error_says_what_to_install():
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.cuda" or name.startswith("numba.cuda."):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.modules.pop("numba.cuda", None)
sys.meta_path.insert(0, Missing())
import nbcnn
model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(2, 2)])
try:
    model.to("cuda")
except ImportError as error:
    print(model.device, error)
"""
    assert run(code).startswith("cpu GPU kernels need numba-cuda (") and "numba-cuda[cu13]==0.30.4" in run(code)


def test_without_a_gpu_the_error_says_why():
    """Or numba-cuda is not installed; where there is a GPU the model moves."""
    code = """
import nbcnn
model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(2, 2)])
try:
    model.to("cuda")
except (RuntimeError, ImportError) as error:
    assert model.device == "cpu" and "\\n" not in str(error) and type(error) in (RuntimeError, ImportError), repr(error)
    print(error)
else:
    print(model.device)
"""
    assert run(code).startswith(("no GPU that CUDA can use: ", "GPU kernels need numba-cuda (", "cuda"))
