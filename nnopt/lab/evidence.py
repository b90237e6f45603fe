"""Runs by blocks in, a verdict out: effect, 99 % interval, one word, one printed line.

The unit of replication is a block: its own split of the data, its own tuning, its own deciding seeds. The value of a
block is the mean paired difference of its seeds, and the interval is Student's t over the blocks' values, so that it
covers the luck of split and tuning as well as that of the seeds.

Reference: Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks".
"""

import dataclasses

import numpy as np
from scipy import stats

from nnopt.checks import check_boolean, check_choice, check_number

LEVEL = 0.99
LEAST_BLOCKS = 8  # fewer decide nothing
RARE = 0.05  # share of failed runs from which on a mean over the others says nothing


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one row is to decide, and how, written down before the runs.

    With treatment t and control c the effect of a pair is t - c on the scale "difference" and log(t / c) on the scale
    "ratio", which suits losses, errors and counts: their differences are skewed.

    Args:
        name: Name of the row, "LR-1" or "LR-1 test": it begins with the statement's id.
        statement: The claim in a sentence.
        role: "primary" rows vote on the article's statement, "secondary" ones do not.
        direction: The claimed side: "less" (effect < margin), "greater" (effect > margin), or "within"
            (-margin < effect < margin; needs a margin > 0).
        scale: "difference" or "ratio".
        matters: Size of an effect that would matter, in the effect's unit, > 0. A primary row must name it.
        unit: What is measured, for the printed line: "training loss", "share of runs".
        margin: Border between supported and refuted, in the effect's unit.
        control: (low, high), raw: the control's mean must lie strictly between, or the row is "not testable here".
            A control at chance or at the metric's maximum proves nothing.
        fails_at: Value at which, or beyond which, a run has failed; NaN and infinite ones always have. Beyond means
            larger where "less" is claimed, smaller where "greater" is.
        exact: Whether the row is an identity, decided by `exact`.
        tolerance: Largest difference that rounding explains, for an identity.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.
    """

    name: str
    statement: str = ""
    role: str = "secondary"
    direction: str = "less"
    scale: str = "difference"
    matters: float | None = None
    unit: str = ""
    margin: float = 0.0
    control: tuple | None = None
    fails_at: float | None = None
    exact: bool = False
    tolerance: float | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip() or "\n" in self.name:
            raise ValueError(f"`name` must be a name on one line, such as 'LR-1'. Received: name={self.name!r}")
        check_choice("role", self.role, ("primary", "secondary"))
        check_choice("direction", self.direction, ("less", "greater", "within"))
        check_choice("scale", self.scale, ("difference", "ratio"))
        check_number("margin", self.margin, **({"above": 0} if self.direction == "within" else {}))
        if self.matters is not None:
            check_number("matters", self.matters, above=0)
        elif self.role == "primary" and not self.exact:
            raise ValueError(f"`matters` must be named for a primary row. Received: matters=None for {self.name!r}")
        if check_boolean("exact", self.exact):
            check_number("tolerance", self.tolerance, at_least=0)
        if self.control is not None and not (len(self.control) == 2 and self.control[0] < self.control[1]):
            raise ValueError(f"`control` must be (low, high) with low < high. Received: control={self.control!r}")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a measurement says about one claim; `print(verdict)` gives the line.

    Args:
        claim: The `Claim`.
        word: "supported", "refuted", "negligible", "inconclusive", "depends on the grid", "not testable here" or
            "exact".
        effect: Mean of the blocks' values, in the effect's unit; of an identity the largest difference.
        low, high: Ends of its 99 % interval; where runs failed too often, of the difference of the failed shares.
        corrected: The interval of Nadeau and Bengio for blocks that re-split one data set, or None.
        p: Two-sided p-value at the margin.
        values: The blocks' values.
        seeds: Pairs in a block.
        failed: Shares of failed runs, (treatment, control).
        halves: The words of the two halves of the grid, where they were tried.
        marks: What a reader must know beside the word.
        note: Why a row is not testable; how an identity was measured.
        book: In a quick run, what the book recorded.
    """

    claim: Claim
    word: str
    effect: float
    low: float = np.nan
    high: float = np.nan
    corrected: tuple | None = None
    p: float = np.nan
    values: tuple = ()
    seeds: int = 0
    failed: tuple = (0.0, 0.0)
    halves: tuple = ()
    marks: tuple = ()
    note: str = ""
    book: str | None = None

    @property
    def needed(self):
        """Blocks whose interval would not contain the margin if effect and spread stay; 0 where the word is another."""
        if self.word != "inconclusive" or self.claim.direction == "within" or max(self.failed) >= RARE:
            return 0
        blocks = np.arange(2, 10_001)
        spread = np.std(self.values, ddof=1)
        half = stats.t.ppf((1 + LEVEL) / 2, blocks - 1) * spread / np.sqrt(blocks)
        decided = half < abs(self.effect - self.claim.margin)
        return int(blocks[np.argmax(decided)]) if decided.any() else 10_000

    def summary(self):
        """Returns the line without its numbers: "LR-1: supported"."""
        return f"{self.claim.name}: {self.word}"

    def __str__(self):
        name, blocks = self.claim.name, len(self.values)
        if self.claim.exact:
            return f"{name} {self.word}: {self.note} {self.effect:.2g}, tolerance {self.claim.tolerance:.3g}"
        if self.book is not None:
            return f"{name} here, {_count(blocks, 'block')}: {self.size()}; the book, {self.book}"
        marks = f" ({', '.join(self.marks)})" if self.marks else ""
        return f"{name} {self.word}{marks}: {self.interval()}, {self._claimed()}; {self._counts()}"

    def size(self):
        """Returns the effect in words: "training loss 21 % lower", "share of runs +0.09"."""
        return f"{self.claim.unit} {_in_words(self.claim, self.effect)}".strip()

    def interval(self):
        """Returns the effect and its interval in words."""
        if np.isnan(self.low):
            return self.size()
        if max(self.failed) >= RARE:
            shares = " against ".join(f"{share:.0%}" for share in self.failed)
            return f"{shares} of the runs failed, difference [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.size()} [{_in_words(self.claim, self.low)}, {_in_words(self.claim, self.high)}]"

    def _claimed(self):
        claim, less = self.claim, self.claim.direction == "less"
        if claim.direction == "within":
            return f"claimed within ±{claim.margin:.3g}"
        if claim.scale == "ratio" and not claim.margin:
            return f"claimed {'lower' if less else 'higher'}"
        return f"claimed {'<' if less else '>'} {_in_words(claim, claim.margin) if claim.margin else 0}"

    def _counts(self):
        runs = f"{_count(len(self.values), 'block')} of {_count(self.seeds, 'seed')}"
        needed = f"about {self.needed:,} blocks would decide" if self.needed else ""
        return "; ".join(part for part in (runs, self.note, needed) if part)


def decide(claim, treatment, control, *, thinned=(), resplit=None):
    """Returns the verdict on a claim, from runs by blocks.

    With effects d of the pairs of block b, v_b = mean(d), and n blocks,

        effect = mean(v),    interval = mean(v) ± t(n - 1) std(v) / sqrt(n)    at 99 %.

    The word is "supported" or "refuted" if the interval lies wholly on a side of the margin, "negligible" if it
    contains zero and lies wholly within ±matters, else "inconclusive". Before that, in this order: a control out of its
    range, or values that are all equal, make it "not testable here". Where runs failed, the difference of the failed
    shares decides (the wider of Newcombe's interval over pairs and of t over blocks); only where it does not,
    and under 5 % of each side failed, the mean over the pairs that both finished does, marked "bound".

    Args:
        claim: A `Claim`.
        treatment: Values (blocks, seeds).
        control: Values (blocks, seeds): pair (b, i) shares its split and its seed.
        thinned: Pairs (treatment, control) of the same shapes, tuned on one half of the grid each. If the effect of one
            has the other sign, a decided row "depends on the grid"; if only its word differs, a mark says so.
        resplit: Test over training examples where blocks re-split one data set: the interval of Nadeau and Bengio
            (2003), with std(v) sqrt(1 / n + resplit), stands beside; a row that it leaves undecided is marked
            "this data set".

    Raises:
        TypeError, ValueError: Shapes do not fit, or a ratio of values that are not positive.

    Example:

    >>> claim = Claim("GD-4", direction="less", scale="ratio", matters=0.1, unit="updates")
    >>> control = np.array([[100.0], [110.0], [120.0], [90.0], [105.0], [95.0], [100.0], [98.0]])
    >>> print(decide(claim, control * np.linspace(0.6, 0.8, 8)[:, None], control))
    GD-4 supported: updates 30.3 % lower [38.5 % lower, 21.1 % lower], claimed lower; 8 blocks of 1 seed

    Reference: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10; Nadeau and Bengio 2003, Machine Learning
    52, 239-281.
    """
    treatment, control = _blocks(treatment, control)
    failed = _failed(claim, treatment), _failed(claim, control)
    values = _values(claim, treatment, control, failed[0] | failed[1])
    effect, shares = float(np.nanmean(values)), tuple(float(side.mean()) for side in failed)
    verdict = Verdict(
        claim, "inconclusive", effect, values=tuple(values.tolist()), seeds=treatment.shape[1], failed=shares
    )
    fair = control[~failed[1]]
    if unfair := _unfair(claim, fair):
        return dataclasses.replace(verdict, word="not testable here", note=unfair)
    if max(shares):
        by_failures = _decide_by_failures(verdict, *failed)
        if by_failures.word != "inconclusive" or max(shares) >= RARE or np.isnan(values).any():
            return by_failures
        verdict = dataclasses.replace(verdict, marks=("bound",))
    if np.ptp(values) <= 1e-12 * max(np.max(np.abs(values)), np.max(np.abs(fair))):
        return dataclasses.replace(verdict, word="not testable here", note="every block gives the same difference")
    return _checked_on_halves(_decide_by_mean(verdict, values, resplit), [decide(claim, *pair) for pair in thinned])


def compare(treatment, control, *, claim, method="t", **options):
    """Returns an exploratory verdict on paired runs that no plan foresaw; it votes on nothing.

    Args:
        treatment: Values (pairs,), or (blocks, seeds).
        control: Values of the same shape.
        claim: A name for the printed line.
        method: "t" as in `decide`; "share" for outcomes 0 or 1: Newcombe's interval for a difference of paired shares,
            which keeps a width where all outcomes are equal: ten escapes in ten runs do not prove that every run
            escapes.
        **options: `direction`, `scale`, `margin`, `matters`, `unit` of a `Claim`.

    Raises:
        TypeError, ValueError: As `decide`; with "share", a value other than 0 and 1.

    Example:

    >>> verdict = compare([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], claim="escapes", direction="greater", method="share")
    >>> verdict.word, round(verdict.high, 2)
    ('inconclusive', 0.53)
    """
    row = Claim(claim, **options)
    sides = [np.asarray(side, "float64") for side in (treatment, control)]
    sides = [side[:, None] if side.ndim == 1 else side for side in sides]
    by_shares = check_choice("method", method, ("t", "share")) == "share"
    verdict = _decide_by_shares(row, *sides) if by_shares else decide(row, *sides)
    return dataclasses.replace(verdict, marks=("exploratory", *verdict.marks))


def exact(actual, expected, *, claim, tolerance=None, relative=False):
    """Returns the verdict on an identity: "exact" if no entry differs by more than the tolerance, else "refuted".

    The measure is max |actual - expected|, divided by max |expected| if `relative`.

    Args:
        actual: Array, or number.
        expected: Array of the same shape.
        claim: A `Claim` with a tolerance, or a name.
        tolerance: Largest difference that rounding explains, >= 0, where `claim` is a name.
        relative: Whether the difference is taken relative to the largest entry of `expected`.

    Raises:
        TypeError, ValueError: Shapes differ, a value is not finite, or an argument is out of its range.

    Example:

    >>> print(exact([1.0, 2.0], [1.0, 2.0 + 1e-7], claim="BN-5", tolerance=1e-5))
    BN-5 exact: largest difference 1e-07, tolerance 1e-05
    """
    claim = claim if isinstance(claim, Claim) else Claim(claim, exact=True, tolerance=tolerance)
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    if actual.shape != expected.shape or not actual.size or not np.isfinite([actual, expected]).all():
        raise ValueError(
            "`actual` and `expected` must be finite, of one shape and not empty. "
            f"Received: shapes {actual.shape} and {expected.shape}"
        )
    largest = float(np.max(np.abs(expected))) if relative else 1.0
    if largest == 0:
        raise ValueError("`expected` must not be all zeros for a relative difference. Received: relative=True")
    difference = float(np.max(np.abs(actual - expected))) / largest
    note = "largest relative difference" if relative else "largest difference"
    return Verdict(claim, "exact" if difference <= claim.tolerance else "refuted", difference, note=note)


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_words(claim, value):
    if claim.scale == "difference":
        return f"{value + 0.0:+.3g}"
    factor = np.exp(value)
    if not 0.5 < factor < 2:
        return f"times {factor:.3g}"
    return f"{100 * abs(factor - 1):.3g} % {'lower' if factor < 1 else 'higher'}"


def _blocks(treatment, control):
    treatment, control = np.asarray(treatment, "float64"), np.asarray(control, "float64")
    if treatment.ndim != 2 or treatment.shape != control.shape or len(treatment) < 2 or treatment.size == 0:
        raise ValueError(
            "`treatment` and `control` must be of one shape (blocks, seeds), with two blocks or more. "
            f"Received: shapes {treatment.shape} and {control.shape}"
        )
    return treatment, control


def _failed(claim, values):
    failed = ~np.isfinite(values)
    if claim.fails_at is not None:
        failed |= values <= claim.fails_at if claim.direction == "greater" else values >= claim.fails_at
    return failed


def _values(claim, treatment, control, left_out):
    """Returns each block's mean effect over the pairs that both sides finished; NaN where there is none."""
    treatment, control = np.where(left_out, 1.0, treatment), np.where(left_out, 1.0, control)
    if claim.scale == "ratio":
        if np.min(treatment) <= 0 or np.min(control) <= 0:
            raise ValueError(f"Values must be > 0 for a ratio. Received: a value <= 0 for {claim.name!r}")
        treatment, control = np.log(treatment), np.log(control)
    effects = np.where(left_out, 0.0, treatment - control)
    finished = np.sum(~left_out, axis=1)
    return effects.sum(axis=1) / np.where(finished, finished, np.nan)


def _unfair(claim, control):
    """Returns why the control is no fair opponent, or an empty string."""
    if claim.control is None or control.size == 0:
        return ""
    mean, (low, high) = float(np.mean(control)), claim.control
    return "" if low < mean < high else f"the control's mean {mean:.3g} is not between {low:g} and {high:g}"


def _decide_by_mean(verdict, values, resplit):
    claim, blocks = verdict.claim, len(values)
    mean, spread = np.mean(values), np.std(values, ddof=1)
    quantile = stats.t.ppf((1 + LEVEL) / 2, blocks - 1)

    def around(scale):
        return float(mean - quantile * spread * scale), float(mean + quantile * spread * scale)

    low, high = around(blocks**-0.5)
    corrected = None if resplit is None else around((1 / blocks + resplit) ** 0.5)
    word, marks = _word(claim, low, high), list(verdict.marks)
    if word in ("supported", "refuted"):
        if claim.matters and max(abs(low), abs(high)) < claim.matters:
            marks.append("too small to matter")
        if corrected and _word(claim, *corrected) != word:
            marks.append("this data set")
    p = _p_value(claim, values)
    return dataclasses.replace(verdict, word=word, low=low, high=high, corrected=corrected, p=p, marks=tuple(marks))


def _word(claim, low, high):
    margin = claim.margin
    if claim.direction == "within":
        inside, outside = -margin < low and high < margin, low > margin or high < -margin
    else:
        below, above = high < margin, low > margin
        inside, outside = (below, above) if claim.direction == "less" else (above, below)
    if inside or outside:
        return "supported" if inside else "refuted"
    return "negligible" if claim.matters and max(abs(low), abs(high)) < claim.matters else "inconclusive"


def _p_value(claim, values):
    if claim.direction != "within":
        return float(stats.ttest_1samp(values, claim.margin).pvalue)
    sides = ((-claim.margin, "greater"), (claim.margin, "less"))  # two one-sided tests
    return float(max(stats.ttest_1samp(values, border, alternative=side).pvalue for border, side in sides))


def _decide_by_failures(verdict, treatment, control):
    """Returns the verdict of the failed shares: a treatment that fails less often is on the claimed side."""
    low, high = _share_interval(treatment, control)
    by_block = treatment.mean(axis=1) - control.mean(axis=1)
    if np.ptp(by_block) > 0:
        other = stats.ttest_1samp(by_block, 0).confidence_interval(LEVEL)
        low, high = min(low, other.low), max(high, other.high)
    fewer = "refuted" if verdict.claim.direction == "within" else "supported"
    word = "refuted" if low > 0 else fewer if high < 0 else "inconclusive"
    only = int(np.sum(treatment & ~control)), int(np.sum(control & ~treatment))
    p = stats.binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0  # McNemar's exact test
    marks = (*verdict.marks, "by failed runs")
    return dataclasses.replace(verdict, word=word, low=float(low), high=float(high), p=float(p), marks=marks)


def _decide_by_shares(claim, treatment, control):
    treatment, control = _blocks(treatment, control)
    if not np.isin([treatment, control], (0, 1)).all():
        raise ValueError("`treatment` and `control` must hold only 0 and 1 with method='share'. Received: other values")
    low, high = _share_interval(treatment, control)
    values = (treatment - control).mean(axis=1)
    word, effect, seeds = _word(claim, low, high), float(values.mean()), treatment.shape[1]
    return Verdict(claim, word, effect, low, high, values=tuple(values.tolist()), seeds=seeds)


def _share_interval(treatment, control, level=LEVEL):
    """Returns Newcombe's interval for the difference of two paired shares, from outcomes 0 or 1."""
    treatment, control, pairs = treatment.astype("float64"), control.astype("float64"), treatment.size
    (share_1, low_1, high_1), (share_2, low_2, high_2) = (
        (np.mean(side), *stats.binomtest(int(side.sum()), pairs).proportion_ci(level, method="wilson"))
        for side in (treatment, control)
    )
    covariance = np.mean(treatment * control) - share_1 * share_2
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * pairs), 0)  # Yates' correction
    spread = np.sqrt(share_1 * (1 - share_1) * share_2 * (1 - share_2))
    correlation = covariance / spread if spread else 0.0

    def length(one, other):
        return np.sqrt(one**2 - 2 * correlation * one * other + other**2)

    low, high = length(share_1 - low_1, high_2 - share_2), length(high_1 - share_1, share_2 - low_2)
    return float(share_1 - share_2 - low), float(share_1 - share_2 + high)


def _checked_on_halves(verdict, halves):
    verdict = dataclasses.replace(verdict, halves=tuple(half.word for half in halves))
    if verdict.word not in ("supported", "refuted"):
        return verdict
    margin = verdict.claim.margin if verdict.claim.direction != "within" else 0.0
    if any((half.effect - margin) * (verdict.effect - margin) < 0 for half in halves):
        return dataclasses.replace(verdict, word="depends on the grid")
    if any(half.word != verdict.word for half in halves):
        return dataclasses.replace(verdict, marks=(*verdict.marks, f"halves of the grid: {', '.join(verdict.halves)}"))
    return verdict
