import datetime
import re
import socket
import sys

import numpy as np
import pytest

pytest.importorskip("num2words")
pytest.importorskip("babel")

from nnopt.data import Dataset, phrases
from nnopt.data.number_phrases import FRAMES, YEARS, _cardinal, _ordinal, _Writer, _year

PARTS = ("train", "validation", "test")
# Written by hand, after Duden.
GERMAN = {
    2: "zwei", 12: "zwölf", 16: "sechzehn", 17: "siebzehn", 20: "zwanzig", 21: "einundzwanzig", 30: "dreißig",
    35: "fünfunddreißig", 45: "fünfundvierzig", 55: "fünfundfünfzig", 66: "sechsundsechzig", 67: "siebenundsechzig",
    70: "siebzig", 77: "siebenundsiebzig", 99: "neunundneunzig", 100: "einhundert", 112: "einhundertzwölf",
    345: "dreihundertfünfundvierzig", 1000: "eintausend", 1011: "eintausendelf",
    4130: "viertausendeinhundertdreißig", 9999: "neuntausendneunhundertneunundneunzig",
    25_000: "fünfundzwanzigtausend", 1_000_000: "eine Million", 2_000_000: "zwei Millionen",
    21_000_000: "einundzwanzig Millionen",
}  # fmt: skip
ENGLISH = {
    12: "twelve", 45: "forty-five", 100: "one hundred", 112: "one hundred and twelve",
    345: "three hundred and forty-five", 4130: "four thousand one hundred and thirty",
    1_000_000: "one million", 21_000_000: "twenty-one million",
}  # fmt: skip
ONES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
ONES |= {"eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17}
ONES |= {"eighteen": 18, "nineteen": 19}
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}


@pytest.fixture(scope="module")
def data():
    return phrases(pairs=(1500, 200, 300))


def texts(words):
    return " ".join(word.text for word in words)


def solid(text):
    """Letters alone: how a number is parted is a test of its own."""
    return re.sub(r"[ -]", "", text)


def read_numbers(sentence):
    """Values of the numbers in an English sentence, found by another way than they were made."""
    values, run = [], []
    for word in [*sentence.split(), "end"]:
        if word in ONES or word in TENS or word in SCALES or (word == "and" and run):
            run.append(word)
            continue
        if run:
            values += _evaluate(run)
        run = []
    return values


def _evaluate(run):
    while run and run[-1] == "and":
        run = run[:-1]
    if len(run) > 1 and run[0] in ONES and ONES[run[0]] == 19 and run[1] not in SCALES:  # nineteen ninety-five
        return [1900 + sum((ONES | TENS)[word] for word in run[1:])]
    total = current = 0
    for word in run:
        if word == "hundred":
            current *= 100
        elif word in SCALES:
            total, current = total + current * SCALES[word], 0
        elif word != "and":
            current += (ONES | TENS)[word]
    return [total + current]


def test_numbers_are_spelled_as_in_the_dictionary():
    for side, dictionary in enumerate((ENGLISH, GERMAN)):
        for number, text in dictionary.items():
            assert solid(texts(_cardinal(number, "")[side])) == solid(text)


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (45, "forty five", "fünf und vierzig"),
        (121, "one hundred and twenty one", "ein hundert ein und zwanzig"),
        (7017, "seven thousand and seventeen", "sieben tausend siebzehn"),
        (800, "eight hundred", "acht hundert"),
        (3_000_000, "three million", "drei Millionen"),
    ],
)
def test_numbers_fall_into_their_parts(number, english, german):
    assert tuple(texts(side) for side in _cardinal(number, "")) == (english, german)


@pytest.mark.parametrize(
    ("year", "english", "german"),
    [
        (1910, "nineteen ten", "neunzehnhundertzehn"),
        (1995, "nineteen ninety-five", "neunzehnhundertfünfundneunzig"),
        (2000, "two thousand", "zweitausend"),
        (2021, "two thousand and twenty-one", "zweitausendeinundzwanzig"),
    ],
)
def test_years_are_spoken_as_years(year, english, german):
    assert tuple(solid(texts(side)) for side in _year(year, "")) == (solid(english), german)


@pytest.mark.parametrize(
    ("day", "english", "german"),
    [
        (1, "first", "ersten"), (3, "third", "dritten"), (7, "seventh", "siebten"), (8, "eighth", "achten"),
        (16, "sixteenth", "sechzehnten"), (20, "twentieth", "zwanzigsten"), (21, "twenty-first", "einundzwanzigsten"),
        (30, "thirtieth", "dreißigsten"), (31, "thirty-first", "einunddreißigsten"),
    ],
)  # fmt: skip
def test_days_of_the_month_are_ordinals_in_the_dative(day, english, german):
    assert tuple(solid(texts(side)) for side in _ordinal(day, "", "n")) == (solid(english), german)


class Chosen:
    """Draws what a test wants, in this order."""

    def __init__(self, *values):
        self.values = list(values)

    def take(self, *_, **__):
        return self.values.pop(0)

    integers = random = choice = take


def filled(slot, *draws):
    writer = _Writer(np.array([45, 50, 2021]), 9999, Chosen(*draws))
    return tuple(texts(side) for side in writer.filling(slot, ""))


def test_a_date_is_am_dritten_mai_zweitausendeinundzwanzig():
    day = (datetime.date(2021, 5, 3) - datetime.date(2021, 1, 1)).days
    english, german = "the third of May two thousand and twenty one", "dritten Mai zwei tausend ein und zwanzig"
    assert filled("on_date", 2021, day) == (f"on {english}", f"am {german}")
    assert filled("on_weekday", 2021, day) == (f"on Monday , {english}", f"am Montag , dem {german}")
    assert filled("the_date", 2021, day) == (english, "der dritte Mai zwei tausend ein und zwanzig")


def test_a_price_is_drei_euro_und_fuenfzig_cent():
    # Currency; long or short number; single word or not; the number; with cents or not; single word or not; cents.
    assert filled("price", 0, 0.9, 0.1, 3, 0.1, 0.9, 50) == (
        "three euros and fifty cents",
        "drei Euro und fünfzig Cent",
    )
    assert filled("price", 2, 0.1, 0.9, 45) == ("forty five British pounds", "fünf und vierzig Britische Pfund")
    assert filled("price", 3, 0.1, 0.9, 45) == ("forty five Swiss francs", "fünf und vierzig Schweizer Franken")


def test_sentences_in_every_frame_read_as_a_german_wrote_them():
    expected = {
        ("bridge", 45): ("the bridge is forty five meters long .", "die Brücke ist fünf und vierzig Meter lang ."),
        ("suitcase", 45): (
            "the suitcase weighs forty five kilograms .",
            "der Koffer wiegt fünf und vierzig Kilogramm .",
        ),
        ("tank", 45): ("the tank holds forty five liters .", "der Tank fasst fünf und vierzig Liter ."),
        ("film", 45): ("the film lasts forty five minutes .", "der Film dauert fünf und vierzig Minuten ."),
        ("road", 45): (
            "she says that the road is forty five meters long .",
            "sie sagt , dass die Straße fünf und vierzig Meter lang ist .",
        ),
        ("box", 45): (
            "he believes that the box weighs forty five kilograms .",
            "er glaubt , dass die Kiste fünf und vierzig Kilogramm wiegt .",
        ),
        ("bought", 45): ("I have bought forty five books .", "ich habe fünf und vierzig Bücher gekauft ."),
        ("sell", 45): ("they want to sell forty five books .", "sie wollen fünf und vierzig Bücher verkaufen ."),
    }
    for (word, number), sides in expected.items():
        frame = next(place for place, (english, _) in enumerate(FRAMES) if f"{word}/" in english)
        # The frame; short number; not a single word; the number; the first unit or thing.
        writer = _Writer(np.array([number]), 9999, Chosen(frame, 0.1, 0.9, number, 0))
        assert tuple(texts(side) for side in writer.clause("")) == sides


def test_one_million_is_eine_million_and_more_are_millionen():
    frame = next(place for place, (english, _) in enumerate(FRAMES) if "{million}" in english)
    for count, german in ((2, "zwei Millionen"), (45, "fünf und vierzig Millionen")):
        english, other = _Writer(np.array([45]), 9999, Chosen(frame, 0.9, count)).clause("")
        assert texts(other) == f"die Stadt hat {german} Einwohner ."
        assert "million inhabitants ." in texts(english)


def test_german_sentences_keep_to_spelling_and_word_order(data):
    for sentence in np.concatenate([getattr(data, part)[1] for part in PARTS]):
        assert sentence.endswith(" .")
        # Transcribed umlauts, the cardinal with a noun, the singular.
        assert not re.search(r"fuenf|zwoelf|dreissig|\beins [A-Z]|(?<!und )\b[Ee]ine? [A-Z]", sentence)
        # Every subordinate clause ends in its verb, every perfect and future in its participle or infinitive.
        if "dass" in sentence:
            assert re.search(r" , dass [^,.]* (ist|wiegt) [.,]", sentence)
        assert not re.search(r"\b(habe|haben|bin|wollen|musst|wurde)\b(?![^,]*(en|t) [.,])", sentence)


def test_weekdays_are_those_of_the_calendar(data):
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    months = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
    months += ["November", "December"]
    ordinals = {texts(_ordinal(day, "", "")[0]): day for day in range(1, 32)}
    years = {texts(_year(year, "")[0]): year for year in YEARS}
    dates = re.findall(r"on (\w+day) , the ([\w ]+) of (\w+) ([\w ]+) [.,]", " ".join(data.train[0]))
    assert len(dates) > 50
    for weekday, day, month, year in dates:
        date = datetime.date(years[year], months.index(month) + 1, ordinals[day])
        assert days[date.weekday()] == weekday


def test_parts_are_of_the_size_asked_for_and_no_pair_comes_twice(data):
    assert isinstance(data, Dataset)
    for part, size in zip(PARTS, (1500, 200, 300)):
        x, y = getattr(data, part)
        assert len(x) == len(y) == len(set(x)) == size
        assert len(data.alignment[part]) == size
    assert not set(data.train[0]) & set(data.test[0])
    assert not set(data.train[0]) & set(data.validation[0])


def own_numbers(sentence):
    """The numbers in a sentence that belong to one part of the data: those of more than one word."""
    read = {n // 10**6 if n >= 10**6 else n for n in read_numbers(sentence)}
    return {n for n in read if n > 20 and (n > 100 or n % 10)}


def test_every_number_of_the_test_is_new(data):
    found = {part: [own_numbers(sentence) for sentence in getattr(data, part)[0]] for part in PARTS}
    assert all(all(numbers) for numbers in found.values())  # every sentence has one
    train, validation, test = (set().union(*numbers) for numbers in found.values())
    assert len(test) > 150
    assert not test & train
    assert not test & validation
    assert not validation & train


def test_six_thousand_pairs_hold_every_token_of_the_test():
    data = phrases()
    for side in (0, 1):
        known = set(" ".join(data.train[side]).split())
        for part in ("validation", "test"):
            assert set(" ".join(getattr(data, part)[side]).split()) <= known


def test_alignment_links_translations_and_leaves_no_word_of_meaning_alone():
    data = phrases(pairs=(300, 5, 5))
    dictionary = {"six": "sechs", "sixty": "sechzig", "seven": "sieben", "seventeen": "siebzehn", "May": "Mai"}
    dictionary |= {"bridge": "Brücke", "Italy": "Italien", "is": "ist", "euros": "Euro", "books": "Bücher"}
    seen = set()
    for english, german, links in zip(*data.train, data.alignment["train"]):
        english, german = english.split(), german.split()
        assert links == sorted(set(links))
        assert all(0 <= i < len(english) and 0 <= j < len(german) for i, j in links)
        pairs = {(english[i], german[j]) for i, j in links}
        for word, other in dictionary.items():
            if word in english:
                seen.add(word)
                assert (word, other) in pairs, (english, german)
        # Unlinked are only the joints of numbers and dates, which the other language has not.
        assert {english[i] for i in set(range(len(english))) - {i for i, _ in links}} <= {"and", "of", ","}
        assert {german[j] for j in set(range(len(german))) - {j for _, j in links}} <= {"und", "hundert", ","}
    assert seen == set(dictionary)


def test_five_and_forty_are_linked_crosswise():
    english, german = _Writer(np.array([45]), 99, Chosen(8, 0.1, 0.9, 45, 0)).clause("")
    tags = [[other.tag for other in german].index(word.tag) for word in english[3:5]]
    assert [word.text for word in english[3:5]] == ["forty", "five"]
    assert [german[place].text for place in tags] == ["vierzig", "fünf"]
    assert tags[0] > tags[1]


def test_short_numbers_and_single_clauses_make_a_small_task():
    data = phrases(pairs=(200, 20, 20), largest=99, clauses=1)
    assert set().union(*map(own_numbers, data.train[0])) <= set(range(21, 100))
    assert max(len(sentence.split()) for sentence in data.train[0]) < 16
    assert not any(re.search("thousand|nineteen \\w+ty", sentence) for sentence in data.train[0])


def test_more_clauses_make_longer_sentences():
    lengths = [
        np.mean([len(sentence.split()) for sentence in phrases(pairs=(200, 2, 2), clauses=clauses).train[0]])
        for clauses in (1, 4)
    ]
    assert lengths[1] > 2 * lengths[0]


def test_sentences_follow_the_seed():
    first, again, other = (phrases(seed, pairs=(30, 5, 5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train[0], again.train[0])
    assert first.alignment == again.alignment
    assert not np.array_equal(first.train[0], other.train[0])


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    phrases(pairs=(5, 5, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"pairs": (10, 10)}, TypeError, "`pairs` must be three integers >= 1"),
        ({"pairs": (10, 0, 10)}, ValueError, r"`pairs\[1\]` must be an integer >= 1"),
        ({"largest": 50}, ValueError, "`largest` must be an integer >= 99 and <= 9999"),
        ({"clauses": 5}, ValueError, "`clauses` must be an integer >= 1 and <= 4"),
        pytest.param(
            {"pairs": (1, 1, 3000), "largest": 99, "clauses": 1},
            ValueError,
            "`pairs` must be fewer",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        phrases(**arguments)


@pytest.mark.parametrize("package", ["num2words", "babel"])
def test_without_its_packages_it_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install num2words babel"):
        phrases()
