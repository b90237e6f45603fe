"""What is the Transformer's own; what it shares with the recurrent models is tested with them, in test_attention.py."""

import numpy as np
import pytest
from sequences import MODELS, SOURCE, TARGET, array

from nnopt.models import transformer


def test_a_step_beyond_the_room_of_the_state_gives_no_number():
    state = MODELS["transformer"].initial_state(SOURCE, maximal_length=2)
    for room in (True, True, False):
        logits, state = MODELS["transformer"].step(TARGET[:, 0], state)
        assert np.isfinite(array(logits)).all() if room else np.isnan(array(logits)).all()


def test_attention_kernels_start_as_glorots_for_square_matrices():
    model = transformer(5, 5, 64, depth=1, heads=8, seed=0)
    limit = (6 / 128) ** 0.5
    attention = model.decoder[0].cross
    for dense in (attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense):
        kernel = array(dense.kernel)
        assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"source_vocabulary": 1}, ValueError, "source_vocabulary"),
        ({"target_vocabulary": None}, TypeError, "target_vocabulary"),
        ({"width": 9, "heads": 3}, ValueError, "width"),
        ({"depth": 0}, ValueError, "depth"),
        ({"heads": 0}, ValueError, "heads"),
        ({"hidden": 0}, ValueError, "hidden"),
        ({"maximal_length": 0}, ValueError, "maximal_length"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"seed": 1.5}, TypeError, "seed"),
    ],
)
def test_wrong_arguments_of_the_transformer_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        transformer(**{"source_vocabulary": 11, "target_vocabulary": 13, "width": 8, **arguments})
