"""Every private Keras name that the package leans on, each with a test in tests/test_keras.py."""

import inspect

import keras
from keras.src.backend.common import global_state
from keras.src.random import seed_generator


def callback_list():
    """The list that `fit` made of its callbacks: one of the callers, as Keras gives callbacks no way to it."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def data_adapter():
    """What the innermost `fit`, `evaluate` or `predict` among the callers reads its data through, or None."""
    frame = _trainer_frame()
    return None if frame is None else frame.f_locals["epoch_iterator"].data_adapter


def trains():
    """Whether the innermost `fit`, `evaluate` or `predict` among the callers is a `fit` within its epochs."""
    frame = _trainer_frame()
    # Before, `fit` on JAX and torch reads one batch to build the model.
    return frame is not None and frame.f_code.co_name == "fit" and "epoch" in frame.f_locals


def _trainer_frame():
    frame = inspect.currentframe()
    while frame is not None:
        if "epoch_iterator" in frame.f_locals and isinstance(frame.f_locals.get("self"), keras.Model):
            return frame
        frame = frame.f_back
    return None


def begin_at_epoch(model, epoch):
    """Sets the epoch with which a `fit` that calls `on_train_begin` begins; None for its own `initial_epoch`."""
    model._initial_epoch = epoch


def learning_rate(optimizer):
    """The variable, schedule or function itself: `optimizer.learning_rate` is a schedule's present value."""
    return inner_optimizer(optimizer)._learning_rate


def drop_unwritten_state(model):
    """Lets JAX forget the arrays of a step that was cut off, which Keras would write to the variables later."""
    if hasattr(model, "_jax_state_synced"):
        model._jax_state_synced = True


def global_seed_generator():
    """The generator behind `keras.random` without a seed, or None before its first use."""
    return global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)


def made_global_seed_generator():
    """The generator behind `keras.random` without a seed, made where there was none."""
    return seed_generator.global_seed_generator()


def set_global_seed_generator(generator):
    """Puts a generator, or None, in the place of the one behind `keras.random`."""
    global_state.set_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR, generator)


def mask(tensor):
    """The mask that an output carries, True where there is something, or None."""
    return getattr(tensor, "_keras_mask", None)


def decays(optimizer, variable):
    """Whether an optimizer's weight decay reaches a variable."""
    return optimizer._use_weight_decay(variable)


def undecayed_names(optimizer):
    """The names given to `exclude_from_weight_decay`, of which the optimizer's config says nothing, or None."""
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    return None if pattern is None else sorted(pattern.pattern.split("|"))


def undecayed_variables(optimizer):
    """What `exclude_from_weight_decay` was given in `var_list`."""
    return getattr(optimizer, "_exclude_from_weight_decay", None)


def batch_counter(optimizer):
    """The variable that counts batches; under gradient accumulation `optimizer.iterations` is a tensor, the updates."""
    return inner_optimizer(optimizer)._iterations


def inner_optimizer(optimizer):
    """The optimizer inside a LossScaleOptimizer, or the optimizer itself."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def class_made_by(optimizer_class):
    """The class of the objects that an optimizer's class makes: on torch one that updates all variables at once."""
    return type(optimizer_class.__new__(optimizer_class))


def slot_of(optimizer, slots, variable):
    """The entry that belongs to a variable in a list that `add_optimizer_variables` returned."""
    return slots[optimizer._get_variable_index(variable)]
