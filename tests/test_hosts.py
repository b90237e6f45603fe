"""Several hosts that train together: their arguments, their rows, and two processes on this machine."""

import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from ports import free_ports

from nnopt.data import OrderedDataset
from nnopt.recipes.hosts import Hosts

PRESET = ["--preset", "laptop", "--set", "depth=8", "width=4", "epochs=2", "batch_size=100"]


@pytest.mark.parametrize(
    ("addresses", "index", "error", "text"),
    [
        (["a:1", "b"], 0, ValueError, "`hosts` must be addresses name:port, set off by commas. Received: 'b'"),
        (["a:1"], 0, ValueError, "`hosts` must name two different addresses or more"),
        (["a:1", "a:1"], 0, ValueError, "`hosts` must name two different addresses or more"),
        (["a:1", "b:1"], 2, ValueError, "`index` must be an integer >= 0 and <= 1"),
        (["a:1", "b:1"], "0", TypeError, "`index` must be an integer"),
    ],
)
def test_a_wrong_host_is_named(addresses, index, error, text):
    with pytest.raises(error, match=text):
        Hosts(addresses, index)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="it is the backend that hosts need")
def test_another_backend_is_refused():
    with pytest.raises(ValueError, match=r"`hosts` needs the backend jax.*Received: KERAS_BACKEND="):
        Hosts(["a:1", "b:1"])


def test_hosts_need_the_strategy_that_spreads_over_them():
    with pytest.raises(ValueError, match="`strategy` must be 'jax' where hosts are given"):
        Hosts(["a:1", "b:1"], strategy="none")


def test_the_hosts_rows_together_are_the_batch():
    data = OrderedDataset(np.arange(12), np.arange(12) * 10, batch_size=6, seed=0)
    assert Hosts().share(data) is data
    shares = []
    for index in range(3):
        hosts = Hosts()
        hosts.addresses, hosts.index = ["a:1", "b:1", "c:1"], index
        shares.append(hosts.share(data))
    assert {len(share) for share in shares} == {2}
    assert all(share.fingerprint() == data.fingerprint() for share in shares)
    for number, whole in enumerate(data.batches(1)):
        parts = [next(iter(share.batches(1, start=number))) for share in shares]
        for place in range(2):
            np.testing.assert_array_equal(np.concatenate([part[place] for part in parts]), whole[place])
    np.testing.assert_array_equal(np.concatenate([share[1][0] for share in shares]), data[1][0])


def start(index, ports, output):
    """Starts one of two hosts, or with index None a process alone."""
    command = [sys.executable, "-m", "nnopt", "train", "image", *PRESET, "--save_every", "3", "--output", str(output)]
    if index is not None:
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        command += ["--strategy", "jax", "--hosts", addresses, "--index", str(index)]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def epochs(text):
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("epoch ")]


def finished(*processes):
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts[0][-2000:]
    return texts


def weights(folder):
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


@pytest.mark.thorough
def test_two_hosts_train_one_network_and_survive_the_loss_of_one(tmp_path):
    pytest.importorskip("jax")
    ports = free_ports(2)
    texts = finished(*(start(index, ports, tmp_path / "two") for index in (0, 1)))
    assert len(epochs(texts[0])) == 2
    assert epochs(texts[0]) == epochs(texts[1])  # the same losses and accuracies on both
    finished(start(None, (), tmp_path / "one"))
    for found, expected in zip(weights(tmp_path / "two"), weights(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3)  # sums in another order, 48 steps of AdamW

    ports, folder = free_ports(2), tmp_path / "killed"
    pair = [start(index, ports, folder) for index in (0, 1)]
    while not list((folder / "checkpoints").glob("*.nnopt")):
        assert pair[0].poll() is None
        time.sleep(0.1)
    pair[1].kill()
    killed = time.monotonic()
    text = pair[0].communicate(timeout=120)[0]
    assert time.monotonic() - killed < 60
    assert pair[0].returncode == 1
    assert "nnopt: Another host has left the training, and host 0 stops: repeat the command on all hosts" in text
    assert not (folder / "report.json").exists()
    ports = free_ports(2)
    finished(*(start(index, ports, folder) for index in (0, 1)))
    for found, expected in zip(weights(folder), weights(tmp_path / "two"), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert json.loads((folder / "report.json").read_text("utf-8"))["training"]["starts"] == 2
