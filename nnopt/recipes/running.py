"""What the recipes share to train: the run folder, the devices, compilation, progress, history, a fit that resumes."""

import contextlib
import csv
import errno
import importlib.util
import io
import json
import math
import os
import pathlib
import platform
import shutil
import sys
import time
import zipfile
from importlib import metadata

import keras
import portalocker
from tqdm import tqdm

from nnopt.callbacks import Resume
from nnopt.checks import check_choice

PACKAGES = ("nnopt", "keras", "tensorflow", "jax", "torch", "numpy")
STRATEGIES = {"none": None, "mirrored": "tensorflow", "jax": "jax"}  # and the backend that each needs
LOOK_EVERY = 1.0  # seconds between two looks at the loss: each makes an accelerator wait
LINE_EVERY = 60.0  # seconds between two states of the bar in a file
TURN = 3600.0  # seconds for which a process of a search waits for another to begin, which makes the vocabulary
ROOM = 1 << 20  # bytes free, below which a failed write is put down to a full disk


class RunFolder:
    """The folder of one run: what it holds is whole at every moment, and of one recipe.

    Args:
        path: The folder; nothing is made before `begin`.
        checkpoints: The folder of the checkpoints; by default one in it.
    """

    def __init__(self, path, checkpoints=None):
        self.path = pathlib.Path(path)
        self.checkpoints = checkpoints or self.path / "checkpoints"

    def check(self, recipe):
        """Raises ValueError where the folder holds something else than the beginning of this very run."""
        # What a killed run was just writing does not count.
        if not self.path.is_dir() or all(".part." in path.name for path in self.path.iterdir()):
            return
        if not (self.path / "recipe.json").exists():
            raise ValueError(f"The output must be a new folder or one of this run. Received: {self.path}, other files")
        try:
            differences = type(recipe).from_json(self.read("recipe.json")).differences(recipe)
        except ValueError:
            differences = ["another case study"]
        if differences:
            raise ValueError(
                f"The folder {self.path} holds a run of another recipe: give this one another folder, or repeat the "
                f"former command to go on with that one. Received: {'; '.join(differences)}"
            )

    def begin(self, recipe, devices, choose_jit):
        """Makes the folder and writes recipe.json and versions.json; returns the latter's content.

        Args:
            recipe: The recipe of the run.
            devices: Its `Devices`.
            choose_jit: Function without arguments that decides `jit_compile`; called when the run is new.
        """
        own = {"backend": keras.backend.backend(), "strategy": devices.strategy, "devices": devices.count}
        if (self.path / "versions.json").exists():
            stored = json.loads(self.read("versions.json"))
            for name, value in own.items():
                if stored[name] != value:
                    raise ValueError(
                        f"The run in {self.path} began with {name} {stored[name]}: go on with it, or give this run "
                        f"another folder. Received: {name} {value}"
                    )
            return stored
        self.path.mkdir(parents=True, exist_ok=True)
        self.write("recipe.json", recipe.to_json())
        own |= {"jit_compile": choose_jit(), "versions": versions(), "machine": machine()}
        self.write("versions.json", json.dumps(own, indent=2) + "\n")
        return own

    @contextlib.contextmanager
    def alone(self):
        """Refuses a folder that another process is training in; its end, even by a kill, gives the folder free."""
        lock = portalocker.Lock(self.path / "running.part.lock", "a", timeout=0)
        try:
            lock.acquire()
        except portalocker.exceptions.LockException as error:
            raise ValueError(f"Another process is training in this folder. Received: {self.path}") from error
        try:
            yield
        finally:
            (self.path / "running.part.lock").unlink(missing_ok=True)
            lock.release()

    @contextlib.contextmanager
    def in_turn(self):
        """Makes the folder, and lets the processes of a search that is spread begin in it one after the other."""
        self.path.mkdir(parents=True, exist_ok=True)
        with portalocker.Lock(self.path / "turn.part.lock", "a", timeout=TURN):
            yield

    def read(self, name):
        """Returns a file's text.

        Raises:
            FileNotFoundError: The folder holds no run, or none that is finished.
        """
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} holds no finished run (no {name}): `python -m nnopt train ... --output {self.path}` "
                "makes one, and goes on where it was interrupted."
            )
        with self._sound(name):
            return path.read_text(encoding="utf-8")

    def write(self, name, content):
        """Writes a file, text or bytes, so that it is there whole or not at all."""
        with self._whole(self.path / name) as temporary, open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())

    def recipe(self, recipe_class):
        """Returns the recipe of the run, which must be of a class of recipes."""
        with self._sound("recipe.json"):
            return recipe_class.from_json(self.read("recipe.json"))

    def fields(self):
        """Returns the names of the recipe's fields, a set, by which one case study is told from the other."""
        with self._sound("recipe.json"):
            return set(dict(json.loads(self.read("recipe.json"))))

    def save_model(self, model):
        """Writes model.keras, without the optimizer."""
        with self._whole(self.path / "model.keras") as temporary, self.told_of_full_disk():
            model.save(temporary)

    def load_model(self):
        """Returns the model of a finished run."""
        if not (self.path / "model.keras").is_file():
            self.read("model.keras")
        with self._sound("model.keras"):
            if (damaged := zipfile.ZipFile(self.path / "model.keras").testzip()) is not None:
                raise zipfile.BadZipFile(f"a wrong checksum of {damaged}")
            return keras.saving.load_model(self.path / "model.keras", compile=False)

    def report(self):
        """Returns the content of report.json."""
        with self._sound("report.json"):
            return dict(json.loads(self.read("report.json")))

    def history(self):
        """Returns the columns of history.csv: lists of numbers by name."""
        with self._sound("history.csv"):
            rows = list(csv.DictReader(io.StringIO(self.read("history.csv"))))
            return {name: [float(row[name]) for row in rows] for name in rows[0]}

    @contextlib.contextmanager
    def _sound(self, name):
        """Raises ValueError, which names the file, in place of what a damaged one else raises."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # HDF5's have none
                raise
            reason = str(error)[:200] or type(error).__name__
            raise ValueError(f"{self.path / name} cannot be read: {reason}") from error

    @contextlib.contextmanager
    def told_of_full_disk(self):
        """Raises OSError in place of what a library raises when the disk is full."""
        try:
            yield
        except Exception as error:
            if shutil.disk_usage(self.path).free < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
            raise

    @contextlib.contextmanager
    def _whole(self, path):
        temporary = path.with_name(f"{path.stem}.part{path.suffix}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class Devices:
    """The devices that share each batch.

    Args:
        strategy: "none" for one device; "mirrored" for all of TensorFlow's, by `tf.distribute.MirroredStrategy`; "jax"
            for all of JAX's, by `keras.distribution.DataParallel`.

    Raises:
        TypeError, ValueError: There is no such strategy, or the backend is not the one that it needs.
    """

    def __init__(self, strategy="none"):
        self.strategy = check_choice("strategy", strategy, tuple(STRATEGIES))
        backend, needed = keras.backend.backend(), STRATEGIES[strategy]
        if needed not in (None, backend):
            raise ValueError(
                f"`strategy` {strategy!r} needs the backend {needed}: set KERAS_BACKEND={needed}. "
                f"Received: KERAS_BACKEND={backend}"
            )
        self._distribution, self.count = None, 1
        if strategy == "mirrored":
            import tensorflow as tf

            names = [device.name for device in tf.config.list_logical_devices("GPU")]
            names = names or [device.name for device in tf.config.list_logical_devices("CPU")]
            self._distribution, self.count = tf.distribute.MirroredStrategy(names), len(names)
        elif strategy == "jax":
            names = keras.distribution.list_devices()
            # A host reads its own rows already: `nnopt.recipes.hosts`.
            distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
            self._distribution, self.count = distribution, len(names)

    @property
    def divisor(self):
        """What the size of each batch must be a multiple of: JAX cuts it into equal parts, TensorFlow need not."""
        return self.count if self.strategy == "jax" else 1

    def scope(self):
        """Returns a context in which variables are made and trained on all devices."""
        return contextlib.nullcontext() if self._distribution is None else self._distribution.scope()

    def check_batches(self, examples, batch_size):
        """Raises ValueError where JAX could not cut a batch into equal parts.

        Args:
            examples: Sizes of the parts of the data that are passed over.
            batch_size: Examples in a batch.
        """
        sizes = sorted({batch_size, *(count % batch_size for count in examples)})
        if any(size % self.divisor for size in sizes):
            raise ValueError(
                f"`batch_size` must leave batches, the last of an epoch too, that {self.count} devices can share "
                f"equally. Received: batches of {sizes}"
            )


@contextlib.contextmanager
def dtype_policy(name):
    """Returns a context in which layers are made with a dtype policy; the one before comes back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def choose_jit(wanted, devices, build, train, steps=3):
    """Returns what a run gives to `compile` as `jit_compile`; "auto" is decided by the time of a step with and without.

    On a processor TensorFlow's XLA helps some networks and slows others. On an accelerator it is taken, under a
    strategy not. The other backends are left their own choice: to JAX, False would mean no compilation at all.

    Args:
        wanted: True, False or "auto": what the recipe says.
        devices: The run's `Devices`.
        build: Function of `jit_compile` that returns a compiled model.
        train: EpochData to take a batch from.
        steps: Steps that are timed, after one that compiles.
    """
    if keras.backend.backend() != "tensorflow":
        return "auto"
    if wanted != "auto":
        return wanted
    import tensorflow as tf

    if devices.strategy != "none":
        return False
    if tf.config.list_logical_devices("GPU"):
        return True
    batch, seconds = next(iter(train.batches(0))), {}
    for jit in (False, True):
        model = build(jit)
        model.train_on_batch(*batch)
        began = time.perf_counter()
        for _ in range(steps):
            model.train_on_batch(*batch)
        seconds[jit] = (time.perf_counter() - began) / steps
    keras.utils.clear_session()
    chosen = min(seconds, key=seconds.get)
    print(f"jit_compile={chosen}: a step takes {seconds[True]:.3g} s with XLA, {seconds[False]:.3g} s without")
    return chosen


def fit(model, train, validation, examples, epochs, folder, devices, hosts, save_every, callbacks=()):
    """Trains a model so that a run that is killed goes on where it was.

    Args:
        model: A compiled model.
        train: EpochData.
        validation: PyDataset of (x, y).
        examples: Number of training examples.
        epochs: Number of epochs.
        folder: The `RunFolder`, which has begun.
        devices: The `Devices` on which the model was made.
        hosts: The `nnopt.recipes.hosts.Hosts` that train together.
        save_every: Batches between two checkpoints within an epoch.
        callbacks: More callbacks, which may add to the logs of an epoch.

    Returns:
        What the report says of the training: epochs, steps, seconds, examples_per_second, memory, and starts.

    Raises:
        FloatingPointError: The loss became NaN or infinite.
    """
    history, progress = HistoryFile(folder), Progress(examples, epochs)
    train, validation = hosts.share(train), hosts.share(validation)
    checkpoints = Resume(folder.checkpoints, train, save_freq=save_every)
    callbacks = [*callbacks, history, progress, checkpoints]
    # Elsewhere TensorFlow, which writes these files, would take the accelerator's memory from the backend.
    if keras.backend.backend() == "tensorflow" and importlib.util.find_spec("tensorboard"):
        callbacks.insert(-1, keras.callbacks.TensorBoard(folder.path / "tensorboard", write_graph=False))
    try:
        with devices.scope(), folder.told_of_full_disk():
            model.fit(train, validation_data=validation, epochs=epochs, verbose=0, callbacks=callbacks)
    finally:
        progress.close()
        for half_written in folder.checkpoints.glob("*.tmp") if hosts.index == 0 else ():
            half_written.unlink()
    epochs = len(history.epoch)  # fewer where it stopped early
    return {"epochs": epochs, "steps": epochs * len(train), **progress.measured()}


class HistoryFile(keras.callbacks.History):
    """Keras' history, which Resume keeps, written to history.csv after each epoch: no line is lost, none comes twice.

    Args:
        folder: The `RunFolder`.
    """

    def __init__(self, folder):
        super().__init__()
        self._folder = folder

    def on_epoch_end(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        super().on_epoch_end(epoch, {**(logs or {}), "learning_rate": rate})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self.history])
        writer.writerows(zip([number + 1 for number in self.epoch], *self.history.values()))
        self._folder.write("history.csv", text.getvalue())


class Progress(keras.callbacks.Callback):
    """A bar with time left and examples a second, a line for each epoch; stops where the loss is no number.

    Its clock goes on over restarts. The speed leaves out validation, and the first step, which compiles.

    Args:
        examples: Number of training examples.
        epochs: Number of epochs.
    """

    def __init__(self, examples, epochs):
        super().__init__()
        self._examples, self._epochs = examples, epochs
        self._bar = self._span = None
        self._looked = 0.0
        self._state = {"seconds": 0.0, "timed_seconds": 0.0, "timed_examples": 0, "starts": 1, "memory_mb": 0}

    def get_state(self):
        seconds = self._state["seconds"] + time.perf_counter() - self._began
        memory = max(self._state["memory_mb"], peak_memory())
        return {**self._state, "seconds": seconds, "memory_mb": memory}

    def set_state(self, state):
        self._state = {**state, "starts": state["starts"] + 1}
        self._began = time.perf_counter()

    def measured(self):
        """Returns seconds, examples_per_second (None where no step could be timed), memory and starts."""
        speed = self._state["timed_examples"] / self._state["timed_seconds"] if self._state["timed_seconds"] else None
        return {
            "seconds": self.get_state()["seconds"],
            "examples_per_second": speed,
            "peak_memory_mb": self.get_state()["memory_mb"],
            "peak_device_memory_mb": peak_device_memory(),
            "starts": self._state["starts"],
        }

    def close(self):
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(self, logs=None):
        self._began = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._bar is not None:
            self._span = time.perf_counter(), epoch * self._examples

    def on_train_batch_end(self, batch, logs=None):
        share = (batch + 1) / self.params["steps"]
        done = self._epoch * self._examples + round(share * self._examples)
        if self._bar is None:
            total, seldom = self._epochs * self._examples, 0.1 if sys.stderr.isatty() else LINE_EVERY
            self._bar = tqdm(total=total, initial=done, unit=" examples", mininterval=seldom, dynamic_ncols=True)
        if self._span is None:
            self._span = time.perf_counter(), done
        self._done = done
        self._bar.update(done - self._bar.n)
        if logs and time.perf_counter() - self._looked > LOOK_EVERY:
            self._looked = time.perf_counter()
            self._check(logs["loss"])
            self._bar.set_postfix_str(f"epoch {self._epoch + 1}, loss {float(logs['loss']):.4g}", refresh=False)

    def on_test_begin(self, logs=None):
        self._end_span()

    def on_epoch_end(self, epoch, logs=None):
        self._end_span()
        self._check(logs["loss"])
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in logs.items())
        tqdm.write(f"epoch {epoch + 1} of {self._epochs}: {values}", file=sys.stdout)
        sys.stdout.flush()

    def _end_span(self):
        if self._span is not None:
            began, first = self._span
            self._state["timed_seconds"] += time.perf_counter() - began
            self._state["timed_examples"] += self._done - first
            self._span = None

    def _check(self, loss):
        if not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"The loss became {float(loss)} in epoch {self._epoch + 1}, and training has stopped: begin anew in "
                "another folder, with a lower `learning_rate` or a longer warm-up."
            )


def versions():
    """Returns the versions of Python and of the packages that decide the result, None where one is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine():
    """Returns what the run is computed on: system, processor, cores, and accelerators where there are any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"system": platform.system(), "processor": _processor(), "cores": cores}
    if keras.backend.backend() == "jax":
        import jax

        found["devices"] = [device.device_kind for device in jax.devices()]
    return found


def peak_memory():
    """Returns the most memory that this process has held so far, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def peak_device_memory():
    """Returns the most memory held on the first accelerator, in MB; None where the backend does not tell."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    statistics = jax.local_devices()[0].memory_stats()
    return round(statistics["peak_bytes_in_use"] / (1 << 20)) if statistics else None


def _processor():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
