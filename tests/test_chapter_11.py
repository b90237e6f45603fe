"""The crop, the block, the schedule and the shared trainings of chapter 11, against SciPy, PyTorch and fresh models."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy import ndimage

import nnopt
from nnopt import schedules
from nnopt.data.augment import RandomShift, augmentation

CHAPTER = from_scratch("11_case_study_image_classification", RandomShift=RandomShift, augmentation=augmentation)
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-4, 3)])
def test_the_crop_moves_as_scipy_does_and_fills_with_black(shift):
    picture = RANDOM.uniform(1, 2, (12, 10, 3))
    expected = ndimage.shift(picture, (*shift, 0), order=0, mode="constant", cval=0)
    np.testing.assert_array_equal(CHAPTER["crop"](picture, *shift, margin=4), expected)


def test_the_flip_mirrors_left_and_right():
    picture = RANDOM.uniform(size=(4, 5, 3))
    np.testing.assert_array_equal(CHAPTER["flip"](picture), np.fliplr(picture))


def test_smaller_takes_means_of_four_pixels():
    pictures = RANDOM.uniform(size=(2, 32, 32, 3))
    small = CHAPTER["smaller"](pictures)
    assert small.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(small[1, 3, 5], 255 * pictures[1, 6:8, 10:12].mean(axis=(0, 1)))


@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (6, 2)])
def test_the_bottleneck_block_computes_what_torch_does(channels, stride):
    torch = pytest.importorskip("torch")
    inputs = keras.Input((8, 8, channels))
    block = keras.Model(inputs, CHAPTER["bottleneck"](inputs, 4, stride))
    kernels = [
        torch.as_tensor(np.transpose(ops.convert_to_numpy(layer.kernel), (3, 2, 0, 1)))
        for layer in block.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    x = RANDOM.normal(size=(2, 8, 8, channels)).astype("float32")

    def normalized(values, kernel, stride=1):
        values = torch.nn.functional.conv2d(values, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return values / np.sqrt(1 + 1e-5)  # moving mean 0, moving variance 1

    start = torch.as_tensor(x).permute(0, 3, 1, 2)
    by_size = {(tuple(kernel.shape[1:]), kernel.shape[0]): kernel for kernel in kernels}
    change = torch.relu(normalized(start, by_size[(channels, 1, 1), 4]))
    change = torch.relu(normalized(change, by_size[(4, 3, 3), 4], stride))
    change = normalized(change, by_size[(4, 1, 1), 16])
    shortcut = start if channels == 16 else normalized(start, by_size[(channels, 1, 1), 16], stride)
    expected = torch.relu(change + shortcut).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(block(x, training=False)), expected, atol=1e-5)


def test_our_network_is_the_shorthand_with_other_widths_and_sizes_too():
    ours = CHAPTER["our_resnet"]((3, 4, 6, 3), (64, 64, 3), 7, width=4)
    theirs = nnopt.models.resnet(50, (64, 64, 3), 7, width=4, seed=1)
    ours.set_weights(theirs.get_weights())
    x = RANDOM.normal(size=(2, 64, 64, 3)).astype("float32")
    actual, expected = (ops.convert_to_numpy(network(x, training=False)) for network in (ours, theirs))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def dense(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def test_one_compiled_model_trains_at_several_rates_as_models_of_their_own_do():
    x, y = RANDOM.normal(size=(20, 3)).astype("float32"), RANDOM.normal(size=(20, 1)).astype("float32")
    rate = CHAPTER["Falling"](steps=5)
    shared = dense(keras.optimizers.SGD(rate))
    rate.attach(shared.optimizer)
    start, found = shared.get_weights(), []
    for peak, share in ((0.1, 0.5), (0.02, 1.0), (0.1, 0.5)):
        shared.set_weights(start)
        for variable in shared.optimizer.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        rate.peak.assign(peak)
        rate.share.assign(share)
        shared.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        found.append(shared.get_weights()[0])
        alone = dense(keras.optimizers.SGD(schedules.ExponentialDecay(peak, 5, share)))
        alone.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        np.testing.assert_allclose(found[-1], alone.get_weights()[0], rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.thorough
def test_a_training_does_not_depend_on_the_one_before_it(monkeypatch):
    monkeypatch.setitem(CHAPTER, "EPOCHS", 2)
    monkeypatch.setitem(CHAPTER, "STEPS", 10)
    adam = {"optimizer": "adam", "final share": 0.03, "augmentation": ("crop", "jitter"), "split": 5, "rate": 0.01}
    adam["parts"] = (("validation", "val"), ("moved", "test_moved"))
    train_once = CHAPTER["train_once"]
    first = train_once(adam, 1)
    other = train_once({**adam, "rate": 0.001, "augmentation": ()}, 2)
    assert train_once(adam, 1) == first
    assert other["val_loss"] != first["val_loss"]


def test_the_changed_test_patches_keep_their_labels_and_the_training_patches_are_dealt_evenly():
    parts = CHAPTER["data_of"](3)
    assert np.bincount(parts["train"][1]).tolist() == [10] * 10
    test = parts["test"][0]
    for name in ("moved", "mirrored", "recoloured"):
        assert parts[name][0].shape == test.shape
        assert np.array_equal(parts[name][1], parts["test"][1])
        assert not np.allclose(parts[name][0], test)
    np.testing.assert_array_equal(parts["mirrored"][0], np.flip(test, axis=2))
