"""Documentation examples are collected from all modules but the GPU's where the package they need is not installed."""
import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("numba_cuda") else ["nbcnn/kernels/cuda/*"]
