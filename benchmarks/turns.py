"""What the benchmarks share: sides that take turns, the report of their medians, and where they ran."""

import importlib.metadata
import os
import platform
import statistics
import time

import keras

import nnopt

TURNS = 5


def rates(sides):
    """Returns the median rate of each side in examples/s; each side is a function that returns how many it took."""
    times = {name: [] for name in sides}
    for take in sides.values():
        take()  # compiles
    for _ in range(TURNS):
        for name, take in sides.items():
            start = time.perf_counter()
            count = take()
            times[name].append((time.perf_counter() - start) / count)
    return {name: 1 / statistics.median(own) for name, own in times.items()}


def report(title, medians):
    """Prints each side's rate, and how many times as fast as it the first one is."""
    first, ours = next(iter(medians.items()))
    print(title)
    for name, rate in medians.items():
        print(f"  {name:40} {rate:9.1f}/s   {first} is {ours / rate:6.2f} times as fast", flush=True)


def here(*packages):
    """Returns the versions of nnopt, Keras, its backend, these packages where they are installed, and Python."""
    backend = keras.backend.backend()
    versions = ", ".join(f"{name} {version}" for name in dict.fromkeys((backend, *packages)) if (version := _of(name)))
    python = f"Python {platform.python_version()}, {os.cpu_count()} CPUs"
    return f"nnopt {nnopt.__version__}, Keras {keras.__version__} on {backend}, {versions}, {python}"


def _of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
