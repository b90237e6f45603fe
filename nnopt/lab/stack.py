"""Many networks of one shape as one: their weights stacked on a first axis, trained in one compiled loop."""

import math

import keras
import numpy as np
from keras import ops

import nnopt.optimizers
from nnopt import _keras, _state
from nnopt._gradients import value_and_gradients
from nnopt._patches import multiply_patches

# Optimizers whose update works entry by entry: applied to stacked weights, one is as many independent optimizers as
# there are runs.
_ELEMENTWISE = ("SGD", "RMSprop", "Adam", "AdamW", "Nadam", "Adamax", "Adagrad", "Adadelta", "Lion", "Ftrl")
# The numbers that may then differ from run to run, but for those that an update asks about in Python.
_NUMBERS = {"learning_rate", "momentum", "rho", "beta_1", "beta_2", "epsilon", "weight_decay"}
_EQUAL_NUMBERS = {"RMSprop": {"momentum"}, "Nadam": {"beta_1", "beta_2"}}
_WHOLE_GRADIENT = ("clipnorm", "global_clipnorm", "use_ema", "gradient_accumulation_steps", "loss_scale_factor")


def _numbers_of(optimizer):
    return _NUMBERS & optimizer.get_config().keys() - _EQUAL_NUMBERS.get(type(optimizer).__name__, set())


def structure(optimizer):
    """Returns what must be equal for optimizers to stand in one stack: all but the numbers that may differ."""
    free = _numbers_of(optimizer) | {"name"}
    config = {key: value for key, value in optimizer.get_config().items() if key not in free}
    return type(optimizer).__name__, config, _keras.undecayed_names(optimizer)


def refuse_if_mixing(optimizer):
    """Raises ValueError with the reason, if an optimizer does more than update each weight on its own."""
    name, reason = type(optimizer).__name__, None
    known = [getattr(module, name, None) for module in (keras.optimizers, nnopt.optimizers)]
    if name not in _ELEMENTWISE or type(optimizer) not in known:
        reason = "is not known to update each weight on its own"
    elif active := [option for option in _WHOLE_GRADIENT if getattr(optimizer, option, None)]:
        reason = f"has `{active[0]}` set, which looks at more than one weight or step at a time"
    elif _keras.undecayed_variables(optimizer):
        reason = "excludes variables from weight decay other than by their names"
    if reason:
        raise ValueError(
            f"The optimizer {name} cannot be trained stacked, since it {reason}: pass stacked=False to train run after "
            f"run. Received: optimizer={name}"
        )


def variables_of(model):
    """Returns the weights, and the variables beside them: moving statistics and the seeds of dropout, not metrics."""
    of_metrics = {id(variable) for variable in model.metrics_variables}
    state = [variable for variable in model.non_trainable_variables if id(variable) not in of_metrics]
    return model.trainable_variables, state


def template_of(networks, x):
    """Builds the network of every seed and compares each with the first, the template of the stack.

    Args:
        networks: Dict of seed -> function that returns that seed's network.
        x: A few examples, on which the template must compute with a network's weights what the network itself does.

    Returns:
        The template; dict of seed -> initial (weights, state), lists of arrays; and None, or why these networks cannot
        be stacked.
    """
    template, initial = None, {}
    for seed, build in networks.items():
        model = build()
        template = template or model
        if reason := _why_not_stackable(template, model, keras.tree.map_structure(ops.convert_to_tensor, x)):
            return template, initial, reason
        initial[seed] = [_state.values(ones) for ones in variables_of(model)]
    return template, initial, None


def _why_not_stackable(template, model, x):
    if type(model).train_step is not keras.Model.train_step or type(model).compute_loss is not keras.Model.compute_loss:
        return "has its own train_step or compute_loss"
    for variable in model.trainable_variables:
        if getattr(variable, "constraint", None) is not None:
            return f"has a constraint, {type(variable.constraint).__name__}, on its weight {variable.path}"
    same = model is template or _computes_the_same(template, model, x)
    return None if same else "has constants or shapes that depend on the seed"


def _computes_the_same(template, model, x):
    """Returns whether the template, given a network's variables, computes what the network does."""
    shapes = [[[one.shape for one in ones] for ones in variables_of(network)] for network in (template, model)]
    if shapes[0] != shapes[1]:
        return False
    values = [[variable.value for variable in ones] for ones in variables_of(model)]
    results = [
        keras.tree.flatten(network.stateless_call(*values, x, training=True, return_losses=True))
        for network in (template, model)
    ]
    pairs = [map(ops.convert_to_numpy, pair) for pair in zip(*results)]
    return all(np.allclose(*pair, rtol=1e-4, atol=1e-6, equal_nan=True) for pair in pairs)


def _numbers(optimizers, steps):
    """Returns name -> (steps, runs), float32: the learning rate and whatever else differs or is a schedule."""
    table = {}
    for name in sorted(_numbers_of(optimizers[0])):
        rate = name == "learning_rate"
        values = [_keras.learning_rate(one) if rate else getattr(one, name) or 0.0 for one in optimizers]
        if rate or any(callable(value) for value in values) or len(set(values)) > 1:
            table[name] = _table(values, steps)
    return table


def _table(values, steps):
    """Returns the numbers, variables and schedules, each over all steps: (steps, runs), float32."""
    distinct = {id(value): value for value in values}

    def at(step):
        now = [value(step) if isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
               else value() if callable(value) else value for value in distinct.values()]  # fmt: skip
        return ops.stack([ops.cast(number, "float32") for number in now])

    columns = ops.convert_to_numpy(ops.vectorized_map(at, ops.arange(steps)))  # (steps, distinct)
    return columns[:, [list(distinct).index(id(value)) for value in values]]


def _stacked_optimizer(optimizers, numbers):
    """Returns one optimizer for the stack, which is given its numbers as arrays (runs, 1) for each step."""
    kind = type(optimizers[0])

    # Keras' SGD asks in Python whether its momentum is 0; ours, told that it is a schedule, does not.
    class Stacked(nnopt.optimizers.SGD if kind.__name__ == "SGD" else kind):
        rates = None  # (runs, 1), set while a step is traced

        @property
        def learning_rate(self):
            return self.rates

        def take(self, numbers):
            for name, row in numbers.items():
                setattr(self, "rates" if name == "learning_rate" else name, row[:, None])

    stacked = Stacked(**{**optimizers[0].get_config(), **dict.fromkeys(numbers, 0.5), "learning_rate": 0.0})
    if "momentum" in numbers:
        stacked._scheduled = ("momentum",)
    stacked.exclude_from_weight_decay(var_names=["without_decay"])
    return stacked


class _Stack:
    """The runs of one network: all weights as one matrix (runs, entries), and the step that trains all rows.

    One matrix, so that the optimizer does each of its operations once, and numbers that differ from run to run,
    (runs, 1), fit. There are further ones for other dtypes and for weights without decay.

    Args:
        template: A network; its weights are not used.
        initial: For each run, the initial (weights, state).
        optimizers: For each run, an optimizer, of which only the numbers are read.
        steps: Number of steps to come.
        loss, metrics: Function (y_true, y_pred), and list of (name, such a function with one value for each example).
        own_data: Whether the data for evaluation have a first axis of runs.
    """

    joins = True

    def __init__(self, template, initial, optimizers, steps, loss, metrics, own_data):
        self.model, self.runs = template, len(initial)
        self.loss, self.metrics, self.own_data = loss, metrics, own_data
        self.names = ["loss"] + [name for name, _ in metrics]
        multiply_patches(template)
        self.layout = {}  # (dtype, decays, ...) -> numbers of the variables
        for number, variable in enumerate(template.trainable_variables):
            key = variable.dtype, _keras.decays(optimizers[0], variable), 0 if self.joins else number
            self.layout.setdefault(key, []).append(number)
        self.shapes = [tuple(variable.shape) for variable in template.trainable_variables]
        self.parameters = []
        for (dtype, decays, _), numbers in self.layout.items():
            rows = [np.concatenate([weights[number].ravel() for number in numbers]) for weights, _ in initial]
            name = "with_decay" if decays else "without_decay"
            self.parameters.append(keras.Variable(np.stack(rows), dtype=dtype, name=name))
        states = zip(*(state for _, state in initial))
        self.state = [keras.Variable(np.stack(arrays), dtype=arrays[0].dtype, trainable=False) for arrays in states]
        self.numbers = _numbers(optimizers, steps)
        self.optimizer = _stacked_optimizer(optimizers, self.numbers)
        self.optimizer.build(self.parameters)

    def load(self, x, y):
        """Takes the training data of all runs, arrays (examples, ...)."""
        self.x, self.y = keras.tree.map_structure(ops.convert_to_tensor, (x, y))

    def train_epoch(self, indices, first_step, batch_size):
        """Trains one epoch on rows `indices` (runs, examples) of the data and returns means (metrics, runs)."""
        examples, total = indices.shape[1], np.zeros(self.runs)
        full = examples - examples % batch_size
        for part, size in ((indices[:, :full], batch_size), (indices[:, full:], examples - full)):
            if part.size:
                rows = part.reshape(self.runs, -1, size).transpose(1, 0, 2)  # (steps, runs, size)
                numbers = {name: table[first_step : first_step + len(rows)] for name, table in self.numbers.items()}
                first_step += len(rows)
                total = total + ops.convert_to_numpy(self.train(rows, numbers)) * size
        return total / examples

    def evaluate(self, batches):
        """Returns means (metrics, runs) over batches (x, y, examples)."""
        total = sum(ops.convert_to_numpy(self.scores_of(x, y)) * examples for x, y, examples in batches)
        return total / sum(examples for _, _, examples in batches)

    def weights(self):
        """Returns the weights and the state, two lists in the model's order of arrays (runs, ...)."""
        parameters, state = self._values()
        return [[ops.convert_to_numpy(one) for one in ones] for ones in (self._weights(parameters), state)]

    def _weights(self, matrices):
        """Returns the weights, (runs, *shape) each, of matrices (runs, entries)."""
        weights = [None] * len(self.shapes)
        for matrix, numbers in zip(matrices, self.layout.values()):
            ends = np.cumsum([math.prod(self.shapes[number]) for number in numbers])
            for number, part in zip(numbers, ops.split(matrix, ends[:-1].tolist(), axis=1)):
                weights[number] = ops.reshape(part, (self.runs, *self.shapes[number]))
        return weights

    def _scores(self, parameters, state, x, y, training):
        """Returns the total loss and the metrics, (metrics, runs), and the new state of all runs."""

        def one(weights, state, x, y):
            predictions, state, penalties = self.model.stateless_call(
                weights, state, x, training=training, return_losses=True
            )
            loss = sum(penalties, ops.mean(self.loss(y, predictions)))
            return ops.cast(loss, "float32"), predictions, state

        own = training or self.own_data
        each = (self._weights(parameters), state) + ((x, y) if own else ())
        loss, predictions, state = ops.vectorized_map(lambda its: one(*its) if own else one(*its, x, y), each)
        y = y if own else ops.repeat(y[None], self.runs, axis=0)
        return ops.stack([loss, *self._metric_values(y, predictions)]), state

    def _metric_values(self, y, predictions):
        """Returns each metric as (runs,), from arrays (runs, batch, ...); no map over the runs, which costs more."""
        y, predictions = [ops.reshape(array, (-1, *ops.shape(array)[2:])) for array in (y, predictions)]
        for name, function in self.metrics:
            values = ops.cast(function(y, predictions), "float32")  # one value for each example of each run
            if not len(values.shape):
                raise ValueError(f"`metrics` must give one value for each example. Received: one number from {name}")
            yield ops.mean(ops.reshape(values, (self.runs, -1)), axis=1)

    def _values(self):
        return [[variable.value for variable in variables] for variables in (self.parameters, self.state)]

    def _slopes(self, parameters, state, data, rows):
        """Returns what `_scores` gives on the rows (runs, batch) of the training data, and the gradients."""
        x, y = keras.tree.map_structure(lambda array: ops.take(array, rows, axis=0), data)  # (runs, batch, ...)

        def loss(parameters):
            scores, new_state = self._scores(parameters, state, x, y, training=True)
            return ops.sum(scores[0]), (scores, new_state)  # the runs are independent: its gradient is each one's own

        (_, scores_and_state), gradients = value_and_gradients(loss, parameters)
        return scores_and_state, gradients


class _TensorFlowStack(_Stack):
    def __init__(self, *arguments):
        import tensorflow

        super().__init__(*arguments)
        # A free number of steps and examples: the last, smaller batch runs in the same graph.
        signature = [
            tensorflow.TensorSpec([None, self.runs, None], "int32"),
            {name: tensorflow.TensorSpec([None, self.runs]) for name in self.numbers},
        ]
        self.train = tensorflow.function(self._train, input_signature=signature, autograph=False)
        self.scores_of = tensorflow.function(self._evaluate, reduce_retracing=True, autograph=False)

    def _train(self, rows, numbers):
        import tensorflow

        def step(number, total):
            (scores, state), gradients = self._slopes(*self._values(), (self.x, self.y), rows[number])
            self.optimizer.take({name: table[number] for name, table in numbers.items()})
            self.optimizer.apply(gradients, self.parameters)
            _state.assign(self.state, state)
            return number + 1, total + scores

        steps = tensorflow.shape(rows)[0]
        start = (0, tensorflow.zeros([len(self.names), self.runs]))
        _, total = tensorflow.while_loop(lambda number, _: number < steps, step, start, parallel_iterations=1)
        return total

    def _evaluate(self, x, y):
        return self._scores(*self._values(), x, y, training=False)[0]


class _JaxStack(_Stack):
    joins = False  # XLA fuses the optimizer's operations anyway, and slices of one matrix would be copied

    def __init__(self, *arguments):
        import jax

        super().__init__(*arguments)
        self._train_compiled = jax.jit(self._train, donate_argnums=0)
        self._evaluate_compiled = jax.jit(lambda *all: self._scores(*all, training=False)[0])

    def _all(self):
        return self.parameters, self.state, self.optimizer.variables

    def train(self, rows, numbers):
        values = [[variable.value for variable in variables] for variables in self._all()]
        values, total = self._train_compiled(values, (self.x, self.y), rows, numbers)
        for variables, new in zip(self._all(), values):
            _state.assign(variables, new)
        return total

    def scores_of(self, x, y):
        return self._evaluate_compiled(*self._values(), x, y)

    def _train(self, values, data, rows, numbers):
        import jax

        def step(values, rows_and_numbers):
            parameters, state, of_optimizer = values
            rows, numbers = rows_and_numbers
            (scores, state), gradients = self._slopes(parameters, state, data, rows)
            self.optimizer.take(numbers)
            parameters, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, parameters)
            return [parameters, state, of_optimizer], scores

        values, scores = jax.lax.scan(step, values, (rows, numbers))
        return values, ops.sum(scores, axis=0)


class Alone:
    """One network under Keras' own `fit`, with the methods of a stack of one run."""

    def __init__(self, model, optimizer, loss, metrics):
        self.model, self.names = model, ["loss"] + [name for name, _ in metrics]
        metrics = [keras.metrics.MeanMetricWrapper(function, name=name) for name, function in metrics]
        model.compile(optimizer=optimizer, loss=loss, metrics=metrics)

    def load(self, x, y):
        self.data = x, y

    def train_epoch(self, indices, first_step, batch_size):
        x, y = keras.tree.map_structure(lambda array: array[indices[0]], self.data)
        log = self.model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0).history
        return np.array([log[name] for name in self.names])

    evaluate = _Stack.evaluate

    def scores_of(self, x, y):
        scores = self.model.evaluate(x, y, batch_size=len(y), verbose=0, return_dict=True)
        return np.array([[scores[name]] for name in self.names])

    def weights(self):
        return [[array[None] for array in _state.values(ones)] for ones in variables_of(self.model)]


STACKS = {"tensorflow": _TensorFlowStack, "jax": _JaxStack}
# Stacks at a time: XLA computes small products on one core; a fixed number, so that no result depends on the cores.
THREADS = {"tensorflow": 1, "jax": 2}
