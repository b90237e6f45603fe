"""Examples attacked in a second by `nnopt.attacks.pgd`, beside ART and foolbox on the same model.

    python benchmarks/attacks.py       # on the backend of KERAS_BACKEND: tensorflow or torch

All sides take twenty projected steps of one size on the sign of the gradient, from the images themselves, without a
restart, in batches of 256, against the same two networks on the digits: a multilayer perceptron and a small
convolutional network, trained for some epochs. The accuracy that each side leaves is printed: they must do the same
work. ART and foolbox are no dependencies of nnopt; one that is missing is left out:
pip install adversarial-robustness-toolbox foolbox
The sides take turns, and the medians are compared.
"""

import importlib.util
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import here, rates, report

import nnopt
from nnopt.attacks import pgd

EPSILON, STEPS, STEP_SIZE, BATCH = 0.1, 20, 0.0125, 256
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def networks():
    data = nnopt.data.digits()
    inner = nnopt.models.cnn((8, 8, 1), [16, 32], classes=10, seed=0)
    outer = keras.Input((64,))
    convolutional = keras.Model(outer, inner(keras.layers.Reshape((8, 8, 1))(outer)))
    for name, model in (("mlp", nnopt.models.mlp((64,), [128], classes=10, seed=0)), ("cnn", convolutional)):
        model.compile(keras.optimizers.Adam(0.003), CROSS_ENTROPY)
        model.fit(*data.train, epochs=10, verbose=0)
        yield name, model, data.train


def with_art(model, x, y):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators import classification

    options = {"input_shape": x.shape[1:], "nb_classes": 10, "clip_values": (0, 1)}
    if keras.backend.backend() == "tensorflow":
        classifier = classification.TensorFlowV2Classifier(model, loss_object=CROSS_ENTROPY, **options)
    else:
        import torch

        classifier = classification.PyTorchClassifier(
            Module(model), torch.nn.CrossEntropyLoss(), device_type="cpu", **options
        )
    attack = ProjectedGradientDescent(
        classifier, norm=np.inf, eps=EPSILON, eps_step=STEP_SIZE, max_iter=STEPS, batch_size=BATCH, verbose=False
    )
    return lambda: attack.generate(x, y)


def with_foolbox(model, x, y):
    import foolbox

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        wrapped, tensor = foolbox.TensorFlowModel(model, bounds=(0, 1), device="/CPU:0"), tf.constant
    else:
        import torch

        wrapped, tensor = foolbox.PyTorchModel(Module(model).eval(), bounds=(0, 1), device="cpu"), torch.tensor
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=False)

    def generate():
        parts = [slice(begin, begin + BATCH) for begin in range(0, len(x), BATCH)]
        found = [attack(wrapped, tensor(x[part]), tensor(y[part]), epsilons=EPSILON)[1].numpy() for part in parts]
        return np.concatenate(found)

    return generate


def Module(model):
    """A Keras model as the torch module that it is on this backend."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)

    return Wrapped()


PEERS = {"art": ("ART", with_art), "foolbox": ("foolbox", with_foolbox)}


def main():
    warnings.filterwarnings("ignore")
    options = {"steps": STEPS, "step_size": STEP_SIZE, "random_start": False, "batch_size": BATCH}
    for name, model, (x, y) in networks():
        x, y = x.astype("float32"), y.astype("int64")
        sides = {"nnopt.attacks.pgd": lambda model=model, x=x, y=y: pgd(model, x, y, EPSILON, **options)}
        for package, (title, side) in PEERS.items():
            if importlib.util.find_spec(package):
                sides[title] = side(model, x, y)
        left = {}
        for title, attack in sides.items():
            found = attack()
            assert np.abs(found - x).max() <= EPSILON + 1e-5
            left[title] = np.mean(model.predict(found, verbose=0).argmax(axis=1) == y)
        print(f"{name}: accuracy under attack", ", ".join(f"{title} {value:.3f}" for title, value in left.items()))
        counted = {title: lambda attack=attack, x=x: len(attack()) and len(x) for title, attack in sides.items()}
        report(f"{name}, {len(x)} images", rates(counted))
    print(here("adversarial-robustness-toolbox", "foolbox"))


if __name__ == "__main__":
    main()
