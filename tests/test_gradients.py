"""Values and gradients on three backends, against arithmetic."""

import keras
import numpy as np
import pytest
from keras import ops

from nnopt._gradients import compiled, value_and_gradients

A, B = np.array([1.0, -2.0], "float32"), np.array([[3.0], [0.5]], "float32")


def product(tensors):
    first, second = tensors
    return ops.sum(ops.square(ops.matmul(first[None], second))), {"twice": [2 * first]}


@pytest.mark.parametrize("wrap", [lambda function: function, compiled])
def test_value_gradients_and_what_stands_beside_agree_with_arithmetic(wrap):
    (value, others), gradients = wrap(lambda tensors: value_and_gradients(product, tensors))([A, B])
    inner = A @ B  # 2
    assert float(value) == inner[0] ** 2
    np.testing.assert_allclose(ops.convert_to_numpy(gradients[0]), 2 * inner * B[:, 0])
    np.testing.assert_allclose(ops.convert_to_numpy(gradients[1]), 2 * inner * A[:, None])
    np.testing.assert_array_equal(ops.convert_to_numpy(others["twice"][0]), 2 * A)


def test_a_tensor_that_does_not_matter_has_a_gradient_of_zero():
    _, gradients = value_and_gradients(lambda tensors: (ops.sum(tensors[0]), None), [A, B])
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), np.zeros((2, 1)))


def test_the_gradient_of_an_embedding_is_dense():
    def of_rows(tensors):
        return ops.sum(ops.take(tensors[0], ops.convert_to_tensor([1, 1]), axis=0)), None

    _, (gradient,) = value_and_gradients(of_rows, [B])
    np.testing.assert_array_equal(ops.convert_to_numpy(gradient), [[0.0], [2.0]])


def test_a_layer_at_other_weights_than_its_own_keeps_its_own():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 2))

    def loss(weights):
        return ops.sum(layer.stateless_call(weights, [], A[None])[0]), None

    (value, _), (gradient,) = value_and_gradients(loss, [B])
    assert float(value) == 2.0
    np.testing.assert_array_equal(ops.convert_to_numpy(gradient), A[:, None])
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), np.ones((2, 1)))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow counts its traces")
def test_one_function_for_many_models_warns_of_no_retracing(caplog):
    for number in range(8):
        compiled(lambda x, number=number: [x + number])(keras.ops.zeros(2))
    assert not caplog.records
