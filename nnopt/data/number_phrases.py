"""English-German sentences about numbers, dates, prices and quantities, whose word alignment is known.

The order of the words differs between the languages (five and forty, a verb at the end, a date before the place), so
there is something to align, and every number is new in the test. num2words spells the numbers; the names of months,
weekdays, currencies, units and countries are those of the Unicode CLDR, through Babel.
"""

import dataclasses
import datetime
import functools
import re
from typing import NamedTuple

import numpy as np

from nnopt.checks import check_integer
from nnopt.data.embedded import Dataset

# The words of both sides, each with a tag after a slash: words of one tag are translations of each other. A slot in
# braces is filled with words that bring their own alignment. Punctuation is written without a space before it.
FRAMES = (
    ("the/a bridge/b is/c {number} {length} long/d ./z", "die/a Brücke/b ist/c {number} {length} lang/d ./z"),
    ("the/a tower/b is/c {number} {height} high/d ./z", "der/a Turm/b ist/c {number} {height} hoch/d ./z"),
    ("the/a lake/b is/c {number} {height} deep/d ./z", "der/a See/b ist/c {number} {height} tief/d ./z"),
    ("the/a suitcase/b weighs/c {number} {weight} ./z", "der/a Koffer/b wiegt/c {number} {weight} ./z"),
    ("the/a tank/b holds/c {number} {volume} ./z", "der/a Tank/b fasst/c {number} {volume} ./z"),
    ("the/a film/b lasts/c {number} {time} ./z", "der/a Film/b dauert/c {number} {time} ./z"),
    (
        "she/a says/b that/c the/d road/e is/f {number} {length} long/g ./z",
        "sie/a sagt/b , dass/c die/d Straße/e {number} {length} lang/g ist/f ./z",
    ),
    (
        "he/a believes/b that/c the/d box/e weighs/f {number} {weight} ./z",
        "er/a glaubt/b , dass/c die/d Kiste/e {number} {weight} wiegt/f ./z",
    ),
    ("I/a have/b bought/c {number} {thing} ./z", "ich/a habe/b {number} {thing} gekauft/c ./z"),
    ("we/a have/b seen/c {number} {thing} ./z", "wir/a haben/b {number} {thing} gesehen/c ./z"),
    ("they/a want/b to/c sell/c {number} {thing} ./z", "sie/a wollen/b {number} {thing} verkaufen/c ./z"),
    ("the/a ticket/b costs/c {price} ./z", "die/a Karte/b kostet/c {price} ./z"),
    ("you/a must/b pay/c {price} ./z", "du/a musst/b {price} bezahlen/c ./z"),
    ("he/a has/b paid/c {price} for/d the/e car/f ./z", "er/a hat/b {price} für/d das/e Auto/f bezahlt/c ./z"),
    ("the/a city/b has/c {million} inhabitants/d ./z", "die/a Stadt/b hat/c {million} Einwohner/d ./z"),
    ("we/a flew/b to/c {country} {on_date} ./z", "wir/a flogen/b {on_date} nach/c {country} ./z"),
    ("I/a have/b traveled/c to/d {country} {on_date} ./z", "ich/a bin/b {on_date} nach/d {country} gereist/c ./z"),
    ("the/a letter/b came/c {on_weekday} ./z", "der/a Brief/b kam/c {on_weekday} ./z"),
    ("today/a is/b {the_date} ./z", "heute/a ist/b {the_date} ./z"),
    ("she/a was/b born/c {on_date} ./z", "sie/a wurde/b {on_date} geboren/c ./z"),
)
THINGS = (
    ("books", "Bücher"), ("houses", "Häuser"), ("chairs", "Stühle"), ("trees", "Bäume"), ("letters", "Briefe"),
    ("eggs", "Eier"), ("bicycles", "Fahrräder"), ("pictures", "Bilder"), ("bottles", "Flaschen"), ("birds", "Vögel"),
)  # fmt: skip
UNITS = {
    "height": ("length-meter",),
    "length": ("length-meter", "length-kilometer"),
    "weight": ("mass-kilogram", "mass-gram"),
    "volume": ("volume-liter",),
    "time": ("duration-minute", "duration-hour", "duration-second"),
}
CURRENCIES = ("EUR", "USD", "GBP", "CHF", "JPY")
WITH_CENTS = ("EUR", "USD")
COUNTRIES = ("IT", "ES", "FR", "AT", "PL", "DK", "SE", "NO", "PT", "GR", "JP", "CA", "BR", "IN", "EG", "MX")
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
            if len(found) == count:
                break
            self.used = set()
            sides = self.sentence(self.random.integers(1, clauses + 1))
            if self.used:  # a sentence without a number of its own part is everybody's
                found.setdefault(" ".join(word.text for word in sides[0]), sides)
        if len(found) < count:
            raise ValueError(f"`pairs` must be fewer: there are not as many different ones. Received: {count}")
        return list(found.values())

    def sentence(self, clauses):
        english, german = [], []
        for clause in range(clauses):
            one, other = self.clause(f"{clause}")
            if clause:
                joint = (f"{clause}", "joint")
                # The full stop of the clause before gives way to ", and".
                english[-1:] = [_Word(","), _Word("and", joint)]
                german[-1:] = [_Word(","), _Word("und", joint)]
            english, german = english + one, german + other
        return english, german

    def clause(self, name):
        english, german = FRAMES[self.random.integers(len(FRAMES))]
        fillings = {slot: self.filling(slot, f"{name}{slot}") for slot in re.findall(r"\{(\w+)\}", english)}
        return _filled(english, 0, fillings, name), _filled(german, 1, fillings, name)

    def filling(self, slot, name):
        """Returns the English and the German words for a slot of the frames."""
        return self._unit(UNITS[slot], name) if slot in UNITS else getattr(self, slot)(name)

    def number(self, name):
        return _cardinal(self._pick(self._numbers_of_any_length()), name)

    def million(self, name):
        count = self._pick(self.owned[self.owned < 1000])
        return _cardinal(int(count) * 10**6, name)

    def price(self, name):
        currency = CURRENCIES[self.random.integers(len(CURRENCIES))]
        english, german = _cardinal(self._pick(self._numbers_of_any_length()), name)
        names = _currency(currency)
        english, german = english + _linked(names[0], (name, "name")), german + _linked(names[1], (name, "name"))
        if currency in WITH_CENTS and self.random.random() < 0.5:
            cents = _cardinal(self._pick(self.small), f"{name}cents")
            english += [_Word("and", (name, "and")), *cents[0], _Word("cents", (name, "cents"))]
            german += [_Word("und", (name, "and")), *cents[1], _Word("Cent", (name, "cents"))]
        return english, german

    def thing(self, name):
        return _pair(THINGS[self.random.integers(len(THINGS))], name)

    def country(self, name):
        return _pair(_countries()[self.random.integers(len(COUNTRIES))], name)

    def on_date(self, name):
        return self._date(name, [_Word("on", (name, "on")), _Word("the", (name, "on"))], [_Word("am", (name, "on"))])

    def the_date(self, name):
        return self._date(name, [_Word("the", (name, "the"))], [_Word("der", (name, "the"))], ending="")

    def on_weekday(self, name):
        date = self._day()
        weekday = _weekdays()[date.weekday()]
        english, german = [_Word("on", (name, "on"))], [_Word("am", (name, "on"))]
        english += [_Word(weekday[0], (name, "weekday")), _Word(","), _Word("the", (name, "the"))]
        german += [_Word(weekday[1], (name, "weekday")), _Word(","), _Word("dem", (name, "the"))]
        return self._date(name, english, german, date=date)

    def _numbers_of_any_length(self):
        # Half of the numbers below one hundred: the place where the two languages differ.
        return self.small if self.random.random() < 0.5 else self.owned

    def _pick(self, numbers):
        """Returns one of the part's numbers, or, once in five times, one of a single word."""
        if self.random.random() < 0.2:
            return int(self.random.integers(2, 21))
        number = int(self.random.choice(numbers))
        self.used.add(number)
        return number

    def _unit(self, units, name):
        return _pair(_unit_names(units[self.random.integers(len(units))]), name)

    def _day(self):
        year = 2000 if self.years is None else int(self.random.choice(self.years))
        return datetime.date(year, 1, 1) + datetime.timedelta(days=int(self.random.integers(365)))

    def _date(self, name, english, german, ending="n", date=None):
        date = self._day() if date is None else date
        day = _ordinal(date.day, f"{name}day", ending)
        month = _months()[date.month - 1]
        english, german = english + day[0], german + day[1]
        english += [_Word("of"), _Word(month[0], (name, "month"))]
        german += [_Word(month[1], (name, "month"))]
        if self.years is None:
            return english, german
        self.used.add(date.year)
        year = _year(date.year, f"{name}year")
        return english + year[0], german + year[1]


def _filled(frame, side, fillings, name):
    words = []
    for token in frame.split():
        if token.startswith("{"):
            words += fillings[token[1:-1]][side]
            continue
        text, _, tag = token.partition("/")
        words.append(_Word(text, (name, tag) if tag else None))
    return words


def _pair(names, name):
    return tuple(_linked(side, (name, "name")) for side in names)


def _linked(text, tag):
    return [_Word(part, tag) for part in text.split()]


@functools.cache
def _spelling(language, ordinal=False):
    """Returns word -> value of the words that numbers are made of."""
    from num2words import num2words

    if ordinal:
        values = [*range(1, 21), 30]
        return {num2words(value, to="ordinal", lang=language): value for value in values}
    words = {num2words(value, lang=language): value for value in [*range(21), *range(30, 100, 10)]}
    scales = {
        "en": {"hundred": 100, "thousand": 1000, "million": 10**6, "and": None},
        "de": {"ein": 1, "eine": 1, "hundert": 100, "tausend": 1000, "Million": 10**6, "Millionen": 10**6, "und": None},
    }
    return words | scales[language]


def _roles(values):
    """Returns for each value what it is in the number: (value of its group, kind), the same in both languages."""
    roles, group, hundred = [], 1, False
    for value in reversed(values):
        if value is None:
            roles.append(None)
        elif value >= 1000:
            group, hundred = value, False
            roles.append((group, "scale"))
        elif value == 100:
            hundred = True
            roles.append((group, "hundred"))
        else:
            roles.append((group, "hundreds" if hundred else "tens" if value >= 20 else "ones"))
    return roles[::-1]


@functools.cache
def _german_pattern():
    return re.compile("|".join(sorted(_spelling("de"), key=len, reverse=True)))


def _german_parts(text):
    """Returns the parts of a German number: einundvierzig -> ein, und, vierzig."""
    parts = []
    for word in text.split():
        pieces = _german_pattern().findall(word)
        if "".join(pieces) != word:
            raise RuntimeError(f"num2words spelled a number in a way that cannot be parted: {text!r}")
        parts += pieces
    return parts


def _english_parts(text):
    """Returns the parts of an English number: forty-one -> forty, one."""
    return re.findall(r"\w+", text)


def _tagged(sides, name):
    """Returns the words of both sides, where equal roles of this number are translations of each other."""
    return tuple([_Word(text, (name, *role) if role else None) for text, role in zip(*side)] for side in sides)


def _cardinal(number, name):
    return _tagged(_spelled_cardinal(number), name)


def _year(year, name):
    return _tagged(_spelled_year(year), name)


def _ordinal(day, name, ending):
    return _tagged(_spelled_ordinal(day, ending), name)


@functools.cache
def _spelled_cardinal(number):
    """Returns for both languages the parts of a number and their roles."""
    from num2words import num2words

    english, german = _english_parts(num2words(number, lang="en")), _german_parts(num2words(number, lang="de"))
    return (english, _roles(_values(english, "en"))), (german, _roles(_values(german, "de")))


@functools.cache
def _spelled_year(year):
    """Returns a year: "nineteen ninety-five" and "neunzehnhundertfünfundneunzig"; a plain number from 2000 on."""
    from num2words import num2words

    if year >= 2000:
        return _spelled_cardinal(year)
    english = _english_parts(num2words(year, to="year", lang="en"))
    century, *rest = _values(english, "en")
    roles = _roles([century, 100, *rest])  # with the "hundred" that English leaves out
    german = _german_parts(num2words(year, to="year", lang="de"))
    return (english, [roles[0], *roles[2:]]), (german, _roles(_values(german, "de")))


@functools.cache
def _spelled_ordinal(day, ending):
    """Returns the day of a month: "twenty-first" and "einundzwanzigste" with a case ending."""
    from num2words import num2words

    english = _english_parts(num2words(day, to="ordinal", lang="en"))
    ordinals = _spelling("en") | _spelling("en", ordinal=True)
    text = num2words(day, to="ordinal", lang="de")
    # Only the last part is an ordinal, "zwanzigste"; what comes before it is spelled as in a cardinal.
    last = next(word for word in sorted(_spelling("de", ordinal=True), key=len, reverse=True) if text.endswith(word))
    before = _german_parts(text.removesuffix(last))
    values = [*_values(before, "de"), _spelling("de", ordinal=True)[last]]
    return (
        (english, _roles([ordinals[part] for part in english])),
        ([*before, last + ending], _roles(values)),
    )


def _values(parts, language):
    return [_spelling(language)[part] for part in parts]


@functools.cache
def _locales():
    from babel import Locale

    return Locale("en"), Locale("de")


@functools.cache
def _months():
    return [tuple(locale.months["format"]["wide"][month] for locale in _locales()) for month in range(1, 13)]


@functools.cache
def _weekdays():
    return [tuple(locale.days["format"]["wide"][day] for locale in _locales()) for day in range(7)]


@functools.cache
def _countries():
    return [tuple(locale.territories[country] for locale in _locales()) for country in COUNTRIES]


@functools.cache
def _currency(code):
    from babel.numbers import get_currency_name

    return tuple(get_currency_name(code, count=2, locale=locale) for locale in _locales())


@functools.cache
def _unit_names(unit):
    from babel.units import format_unit

    return tuple(format_unit(2, unit, "long", locale=locale).removeprefix("2 ") for locale in _locales())


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
