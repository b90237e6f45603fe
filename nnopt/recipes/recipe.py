"""What the two recipes share: fields with their rules, named presets, a table, and JSON."""

import dataclasses
import json
import typing

from nnopt.checks import check_choice


class Recipe:
    """Base of the frozen dataclasses that hold every setting of a case study.

    A subclass is a dataclass whose `__post_init__` checks each field, and whose `presets` maps a name to a function
    without arguments that returns the recipe. The function's docstring states the command, the time and the result.
    """

    presets: dict = {}  # noqa: RUF012

    @classmethod
    def preset(cls, name):
        """Returns the recipe of a preset.

        Args:
            name: A key of `presets`.

        Raises:
            TypeError, ValueError: There is no such preset.
        """
        return cls.presets[check_choice("preset", name, tuple(cls.presets))]()

    def check_choices(self):
        """Checks the fields that must be one of a few values."""
        for field in dataclasses.fields(self):
            if typing.get_origin(field.type) is typing.Literal:
                check_choice(field.name, getattr(self, field.name), typing.get_args(field.type))

    def refuse_broken(self, rules):
        """Raises ValueError where a rule is broken.

        Args:
            rules: (what the field must be, whether it is) by field.
        """
        for name, (rule, kept) in rules.items():
            if not kept:
                raise ValueError(f"`{name}` must be {rule}. Received: {name}={getattr(self, name)!r}")

    def replace(self, **changes):
        """Returns a recipe with some fields changed.

        Args:
            **changes: New values by field.

        Raises:
            TypeError, ValueError: There is no such field, or the value breaks its rule.
        """
        return dataclasses.replace(self, **changes)

    def to_json(self):
        """Returns the recipe as indented JSON, the same text for equal recipes."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text):
        """Returns the recipe that `to_json` wrote.

        Raises:
            TypeError, ValueError: The text is no such recipe.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"A recipe must be JSON. Received: {str(text)[:80]!r}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            found = sorted(set(values) ^ known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"A recipe must have exactly the fields of {cls.__name__}. Received: other fields {found}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def differences(self, other):
        """Returns the fields in which another recipe of this class differs, as sentence parts "epochs 5, not 1"."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{name} {theirs[name]!r}, not {value!r}" for name, value in ours.items() if theirs[name] != value]

    def __str__(self):
        """The fields as a table of two columns."""
        values = dataclasses.asdict(self)
        width = max(map(len, values))
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in values.items())


def _shown(value):
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
