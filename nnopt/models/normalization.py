"""Batch normalization in one kernel: the same layer as Keras', without the memory traffic of its parts."""

import keras


@keras.saving.register_keras_serializable("nnopt")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of images, computed by the backend's own fused kernel where it has one.

    Keras composes the layer of mean, variance, differences and products, each of which reads and writes the whole
    activation, and its gradient does so again. TensorFlow and PyTorch have one kernel each for forward and backward;
    XLA, under JAX, fuses by itself. Arguments, weights, moving statistics (of the biased variance, where PyTorch's own
    layer keeps the unbiased one) and results are those of Keras' layer, to rounding. What the kernels do not cover
    (masks, renormalization, synchronization, inputs that are no images with channels last) is Keras' own code.

    Args:
        **settings: Those of `keras.layers.BatchNormalization`.

    Example:

    >>> layer = FusedBatchNormalization(epsilon=1e-5)
    >>> tuple(layer(keras.ops.ones((2, 4, 4, 3)), training=True).shape)
    (2, 4, 4, 3)

    Reference: Ioffe and Szegedy 2015, algorithm 1.
    """

    def call(self, inputs, training=None, mask=None):
        kernel = {"tensorflow": _tensorflow, "torch": _torch}.get(keras.backend.backend())
        if kernel is None or mask is not None or not self._covered(inputs):
            return super().call(inputs, training=training, mask=mask)
        update = bool(training) and self.trainable
        gamma = self.gamma if self.scale else keras.ops.ones_like(self.moving_mean)
        beta = self.beta if self.center else keras.ops.zeros_like(self.moving_mean)
        outputs, mean, variance = kernel(
            inputs, gamma, beta, self.moving_mean, self.moving_variance, self.epsilon, update
        )
        if update:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + keras.ops.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return keras.ops.cast(outputs, self.compute_dtype)

    def _covered(self, inputs):
        channels_last = self.axis in (-1, 3) and len(inputs.shape) == 4
        types = keras.backend.standardize_dtype(inputs.dtype), keras.backend.standardize_dtype(self.variable_dtype)
        supported = types[0] in ("float16", "bfloat16", "float32") and types[1] == "float32"
        return channels_last and supported and not self.renorm and not self.synchronized


def _tensorflow(inputs, gamma, beta, moving_mean, moving_variance, epsilon, training):
    import tensorflow as tf

    statistics = {} if training else {"mean": moving_mean.value, "variance": moving_variance.value}
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        tf.convert_to_tensor(gamma),
        tf.convert_to_tensor(beta),
        epsilon=epsilon,
        is_training=training,
        **statistics,
    )
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], "float32")
    return outputs, mean, variance * (count - 1.0) / count  # the kernel returns the unbiased variance


def _torch(inputs, gamma, beta, moving_mean, moving_variance, epsilon, training):
    import torch

    statistics = (None, None) if training else (moving_mean.value, moving_variance.value)
    outputs, mean, inverse_deviation = torch.native_batch_norm(
        inputs.permute(0, 3, 1, 2),
        keras.ops.convert_to_tensor(gamma),
        keras.ops.convert_to_tensor(beta),
        *statistics,
        training,
        0.0,
        epsilon,
    )
    variance = (inverse_deviation.detach() ** -2 - epsilon).clamp_min(0.0) if training else None
    return outputs.permute(0, 2, 3, 1), mean.detach(), variance
