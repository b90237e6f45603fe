"""Settings for all tests; the kernels of the notebooks inherit the environment set here."""

import os
import tempfile

import matplotlib

# Notebooks under test draw into a folder of their own, so that a test run leaves the tree clean.
_figures = tempfile.TemporaryDirectory(prefix="nnopt_figures_")
os.environ["NNOPT_FIGURES"] = _figures.name
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests run side by side: a thread each. With as many as there are cores PyTorch's tests take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# Not by MPLBACKEND: the kernels would inherit it and show no figures.
matplotlib.use("agg")


def pytest_unconfigure(config):
    _figures.cleanup()
