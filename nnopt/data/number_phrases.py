"""English-German sentences about numbers, dates, prices and quantities, whose word alignment is known.

The order of the words differs between the languages (five and forty, a verb at the end, a date before the place), so
there is something to align, and every number is new in the test. num2words spells the numbers; the names of months,
weekdays, currencies, units and countries are those of the Unicode CLDR, through Babel.
"""

import dataclasses
import datetime
import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnopt.checks import check_integer
from nnopt.data.embedded import Dataset

# The words of both sides of a frame have a tag after a slash: words of one tag are translations of each other. A slot
# in braces is filled with words that bring their own alignment. Punctuation is written without a space before it.
_TABLES = json.loads(Path(__file__).with_name("number_phrases.json").read_text(encoding="utf-8"))
FRAMES, DATES, UNITS = _TABLES["frames"], _TABLES["dates"], _TABLES["units"]
YEARS = range(1910, 2030)
SHARES = (0.7, 0.15, 0.15)  # of the numbers, for training, validation and test
PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Phrases(Dataset):
    """A `Dataset` of sentence pairs that also knows which word translates which.

    Its x (English) and y (German) are arrays of strings in which single spaces part the tokens.

    Args:
        alignment: Dict of part -> list with, for each pair, its links (English token, German token): two indices,
            counted from 0. A token without counterpart (such as the "und" of "fünf und vierzig") has no link.
    """

    alignment: dict = dataclasses.field(default_factory=dict)


class _Word(NamedTuple):
    """A token: its translations share its tag."""

    text: str
    tag: tuple | None = None


def phrases(seed=0, *, pairs=(6000, 500, 500), largest=9999, clauses=2):
    """Returns English-German sentence pairs about numbers, with the alignment of their words.

    Numbers of one word in English (up to twenty, and the tens) may stand everywhere. Any other number belongs to one of
    the parts (70 / 15 / 15 %), and every sentence holds such a number of its own part: no number of a test sentence is
    in training, be it a quantity, a price, a number of millions or a year. Smaller numbers inside it can be: 345 may
    be in training and 45 in the test. German numbers stand in parts, "fünf und vierzig", so that some thousand training
    pairs hold every word of the test. Tokens are in the case that they have in the middle of a sentence.

    Args:
        seed: Integer >= 0 that decides the numbers of each part and the sentences.
        pairs: Numbers of training, validation and test pairs, integers >= 1. No pair comes twice.
        largest: Largest number, an integer from 99 to 9999; below 2029 dates have no year.
        clauses: Largest number of clauses in a sentence, joined by "and", from 1 to 4; all numbers are equally likely.

    Returns:
        `Phrases`, a `Dataset` with `.alignment`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.
        ImportError: num2words or Babel is not installed.

    Example:

    >>> data = phrases(pairs=(100, 10, 10))
    >>> data
    Dataset(train=100, validation=10, test=10, classes=None)
    >>> link = data.alignment["test"][0][0]
    >>> data.test[0][0].split()[link[0]], data.test[1][0].split()[link[1]]
    ('the', 'der')
    >>> print(data.test[1][0])
    der Turm ist sechs und achtzig Meter hoch , und der See ist ein und neunzig Meter tief .

    Reference: Unicode CLDR (Unicode licence v3), through Babel (BSD-3); num2words (LGPL-2.1+).
    """
    _need_packages()
    seed = check_integer("seed", seed, at_least=0)
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 3:
        raise TypeError(f"`pairs` must be three integers >= 1. Received: pairs={pairs!r}")
    pairs = [check_integer(f"pairs[{i}]", count, at_least=1) for i, count in enumerate(pairs)]
    largest = check_integer("largest", largest, at_least=99, at_most=9999)
    clauses = check_integer("clauses", clauses, at_least=1, at_most=4)
    made = {}
    for number, (part, owned) in enumerate(_dealt_numbers(largest, seed).items()):
        writer = _Writer(owned, largest, np.random.default_rng([seed, number]))
        made[part] = writer.sentences(pairs[number], clauses)
    return _collected(made)


def _need_packages():
    try:
        import babel  # noqa: F401
        import num2words  # noqa: F401
    except ImportError as error:
        raise ImportError("`phrases` needs num2words and Babel: pip install num2words babel") from error


def _dealt_numbers(largest, seed):
    """Returns part -> array of its numbers. Those of one English word belong to none: they are vocabulary."""
    dealt = {part: [] for part in PARTS}
    for numbers in (range(21, 100), range(100, largest + 1)):  # apart, so that each part has enough of the short ones
        numbers = np.random.default_rng(seed).permutation([n for n in numbers if n >= 100 or n % 10])
        ends = np.rint(np.cumsum(SHARES)[:2] * len(numbers)).astype(int)
        for part, some in zip(PARTS, np.split(numbers, ends)):
            dealt[part].append(np.sort(some))
    return {part: np.concatenate(numbers).astype("int64") for part, numbers in dealt.items()}


class _Writer:
    """Writes sentences with numbers of one part of the data."""

    def __init__(self, owned, largest, random):
        self.random = random
        # Before a noun, German is not agreed on "hunderteins" or "hundertein": no such number.
        self.owned = owned[owned % 100 != 1]
        self.small = self.owned[self.owned < 100]
        self.years = owned[np.isin(owned, YEARS)] if largest >= YEARS[-1] else None
        self.used = set()

    def sentences(self, count, clauses):
        """Returns `count` different (English words, German words)."""
        found = {}
        for _ in range(50 * count):
            self.used = set()
            sides = self.sentence(self.random.integers(1, clauses + 1))
            if self.used:  # a sentence without a number of its own part is everybody's
                found.setdefault(" ".join(word.text for word in sides[0]), sides)
            if len(found) == count:
                return list(found.values())
        raise ValueError(f"`pairs` must be fewer: there are not as many different ones. Received: {count}")

    def sentence(self, clauses):
        sides = self.clause("0")
        for number in range(1, clauses):
            for words, joint, more in zip(sides, ("and", "und"), self.clause(f"{number}")):
                # The full stop of the clause before gives way to ", and".
                words[-1:] = [_Word(","), _Word(joint, (f"{number}", "joint")), *more]
        return sides

    def clause(self, name):
        frame = self._one_of(FRAMES)
        slots = re.findall(r"\{(\w+)\}", frame[0])
        return _filled(frame, {slot: self.filling(slot, f"{name}{slot}") for slot in slots}, name)

    def filling(self, slot, name):
        """Returns the English and the German words for a slot of the frames."""
        if slot in UNITS:
            return _name("unit", self._one_of(UNITS[slot]), name)
        return self._date(slot, name) if slot in DATES else getattr(self, f"_{slot}")(name)

    def _number(self, name):
        # Half of the numbers below one hundred: the place where the two languages differ.
        return _cardinal(self._pick(self.small if self.random.random() < 0.5 else self.owned), name)

    def _million(self, name):
        return _cardinal(self._pick(self.owned[self.owned < 1000]) * 10**6, name)

    def _price(self, name):
        currency = self._one_of(_TABLES["currencies"])
        fillings = {"number": self._number(f"{name}number"), "currency": _name("currency", currency, f"{name}currency")}
        with_cents = currency in _TABLES["currencies_with_cents"] and self.random.random() < 0.5
        if with_cents:
            fillings["cents"] = _cardinal(self._pick(self.small), f"{name}cents")
        return _filled(_TABLES["prices"][with_cents], fillings, name)

    def _thing(self, name):
        return _linked(self._one_of(_TABLES["things"]), name)

    def _country(self, name):
        return _name("country", self._one_of(_TABLES["countries"]), name)

    def _date(self, slot, name):
        year = 2000 if self.years is None else int(self.random.choice(self.years))
        date = datetime.date(year, 1, 1) + datetime.timedelta(days=int(self.random.integers(365)))
        fillings = {
            "day": _ordinal(date.day, f"{name}day", "" if slot == "the_date" else "n"),
            "weekday": _name("weekday", date.weekday(), f"{name}weekday"),
            "month": _name("month", date.month, f"{name}month"),
            "year": ([], []) if self.years is None else _year(year, f"{name}year"),
        }
        if self.years is not None:
            self.used.add(year)
        return _filled(DATES[slot], fillings, name)

    def _one_of(self, items):
        return items[self.random.integers(len(items))]

    def _pick(self, numbers):
        """Returns one of the part's numbers, or, once in five times, one of a single word."""
        if self.random.random() < 0.2:
            return int(self.random.integers(2, 21))
        number = int(self.random.choice(numbers))
        self.used.add(number)
        return number


def _filled(frame, fillings, name):
    """Returns the words of both sides of a frame, whose tags get a name that no other frame of the sentence has."""
    sides = []
    for side, text in enumerate(frame):
        words = []
        for token in text.split():
            word, _, tag = token.partition("/")
            words += fillings[token[1:-1]][side] if token[0] == "{" else [_Word(word, (name, tag) if tag else None)]
        sides.append(words)
    return tuple(sides)


def _linked(names, name):
    """Returns the words of an English name and of its translation, all linked."""
    return tuple([_Word(word, (name, "name")) for word in text.split()] for text in names)


@functools.cache
def _spelling(language):
    """Returns word -> value of the words that numbers are made of."""
    from num2words import num2words

    words = {num2words(value, lang=language): value for value in [*range(21), *range(30, 100, 10)]}
    return words | _TABLES["other number words"][language]


@functools.cache
def _parts(number, language, to="cardinal"):
    """Returns the parts of a spelled number: forty-one -> forty, one; einundvierzig -> ein, und, vierzig."""
    from num2words import num2words

    text = num2words(number, lang=language, to=to)
    parts = re.findall("|".join(sorted(_spelling(language), key=len, reverse=True)), text)
    if "".join(parts) != re.sub("[ ,-]", "", text):
        raise RuntimeError(f"num2words spelled a number in a way that cannot be parted: {text!r}")
    return parts


def _roles(parts, language):
    """Returns for each part what it is in the number: (value of its group, kind), the same in both languages."""
    roles, group, hundred = [], 1, False
    for value in map(_spelling(language).get, reversed(parts)):
        if value is None:
            roles.append(None)
            continue
        if value >= 1000:
            group, hundred = value, False
        kind = "scale" if value >= 1000 else "hundreds" if hundred else "tens" if value >= 20 else "ones"
        roles.append((group, "hundred" if value == 100 else kind))
        hundred = hundred or value == 100
    return roles[::-1]


def _tagged(parts, roles, name):
    """Returns the words of one side, where equal roles of this number are translations of each other."""
    return [_Word(text, (name, *role) if role else None) for text, role in zip(parts, roles)]


def _cardinal(number, name):
    sides = ((_parts(number, language), language) for language in ("en", "de"))
    return tuple(_tagged(parts, _roles(parts, language), name) for parts, language in sides)


def _year(year, name):
    """Returns a year: "nineteen ninety-five" and "neunzehnhundertfünfundneunzig"; a plain number from 2000 on."""
    if year >= 2000:
        return _cardinal(year, name)
    (century, *rest), german = _parts(year, "en", "year"), _parts(year, "de", "year")
    first, _, *others = _roles([century, "hundred", *rest], "en")  # with the "hundred" that English leaves out
    return _tagged([century, *rest], [first, *others], name), _tagged(german, _roles(german, "de"), name)


def _ordinal(day, name, ending):
    """Returns the day of a month: "twenty-first" and "einundzwanzigste" with a case ending."""
    from num2words import num2words

    english, german = re.findall(r"\w+", num2words(day, to="ordinal", lang="en")), _parts(day, "de")
    # Only the last part is an ordinal, "zwanzigste"; what comes before it is spelled as in a cardinal.
    last = num2words(day, to="ordinal", lang="de").removeprefix("".join(german[:-1])) + ending
    roles = _roles(_parts(day, "en"), "en"), _roles(german, "de")
    return _tagged(english, roles[0], name), _tagged([*german[:-1], last], roles[1], name)


def _name(kind, key, name):
    return _linked(_cldr_names(kind, key), name)


@functools.cache
def _cldr_names(kind, key):
    """Returns the English and the German name of a month, weekday, country, currency or unit."""
    from babel import Locale, numbers, units

    names_of = {
        "month": lambda locale: locale.months["format"]["wide"][key],
        "weekday": lambda locale: locale.days["format"]["wide"][key],
        "country": lambda locale: locale.territories[key],
        "currency": lambda locale: numbers.get_currency_name(key, count=2, locale=locale),
        "unit": lambda locale: units.format_unit(2, key, "long", locale=locale).removeprefix("2 "),
    }
    return tuple(names_of[kind](Locale(language)) for language in ("en", "de"))


def _collected(made):
    alignment, sides = {}, {}
    for part, sentences in made.items():
        sides[part] = tuple(
            np.array([" ".join(word.text for word in sentence[side]) for sentence in sentences]) for side in (0, 1)
        )
        alignment[part] = [_links(english, german) for english, german in sentences]
    description = (
        "English-German sentence pairs about numbers, dates, prices and quantities; numbers spelled by num2words "
        "(LGPL-2.1+), names from the Unicode CLDR (Unicode licence v3) through Babel"
    )
    return Phrases(**sides, description=description, alignment=alignment)


def _links(english, german):
    places = {}
    for place, word in enumerate(german):
        places.setdefault(word.tag, []).append(place)
    return [(i, j) for i, word in enumerate(english) if word.tag for j in places.get(word.tag, ())]
