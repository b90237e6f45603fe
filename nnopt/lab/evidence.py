"""Paired runs in, a verdict out: effect, confidence interval, one printed line, and the ledger that keeps them.

A verdict is decided by where the interval of the mean paired difference lies: wholly on the claimed side (supported),
wholly on the other (refuted), or across the border (inconclusive, which is an honest outcome).
"""

import contextlib
import csv
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from scipy import stats

from nnopt.checks import check_choice, check_integer, check_number

LEAST_PAIRS = 5
NOT_NORMAL = 0.01  # Shapiro-Wilk p-value below which differences count as plainly not normal
RESAMPLES = 9999
METHODS = {"t": "paired t", "bootstrap": "paired bootstrap", "share": "paired shares"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a measurement says about one claim.

    `print(verdict)` gives the whole line, whose last digits differ from machine to machine; `verdict.summary()` gives
    the part that a notebook can compare with its stored output.

    Args:
        claim: Name of the claim in the ledger, such as "LR-1".
        notebook: Name of the notebook that recorded it; empty until then.
        effect: Mean paired difference, treatment minus control; of an identity the largest difference.
        low: Lower end of the effect's confidence interval.
        high: Upper end.
        unit: Unit of the three.
        seeds: Number of pairs; 0 for an identity.
        verdict: "supported", "refuted", "inconclusive" or "exact".
        method: How the interval was made, in words.
        direction: Which side of the margin is claimed: "less", "greater", or "within" (-margin ... margin).
        margin: The border between supported and refuted, in the effect's unit.
    """

    claim: str
    notebook: str
    effect: float
    low: float
    high: float
    unit: str
    seeds: int
    verdict: str
    method: str
    direction: str
    margin: float

    def summary(self):
        """Returns the line without its numbers, the same on every machine: "LR-1: supported"."""
        return f"{self.claim}: {self.verdict}"

    def __str__(self):
        unit = f" {self.unit}" if self.unit else ""
        if self.seeds == 0:
            return f"{self.claim} {self.verdict}: {self.method} {self.effect:.2g}{unit}, tolerance {self.margin:.3g}"
        sign = {"less": "<", "greater": ">", "within": "within ±"}[self.direction]
        side = f"{sign}{self.margin:.3g}" if self.direction == "within" else f"{sign} {self.margin:.3g}"
        return (
            f"{self.claim} {self.verdict}: {self.effect:.3g}{unit} [{self.low:.3g}, {self.high:.3g}], "
            f"claimed {side}; {self.seeds} seeds, {self.method}"
        )


def compare(
    treatment,
    control,
    *,
    claim,
    direction="less",
    margin=0.0,
    unit="",
    confidence=0.95,
    method="auto",
    seed=0,
):
    """Returns the verdict on a claim that a treatment changes a quantity, from paired runs.

    With d = treatment - control over n >= 5 pairs, the effect is mean(d) and its interval is, by `method`:

    - "t": the paired t interval, mean(d) ± t(n - 1) std(d) / sqrt(n);
    - "bootstrap": 9,999 resamples of d, percentiles widened by sqrt(n / (n - 1)) and Student's t as small samples need
      (Hesterberg 2015, section 3.3: the plain ones are too narrow);
    - "share": for outcomes 0 or 1, Newcombe's interval for a difference of paired shares, which keeps a width where
      all differences are equal: ten escapes in ten runs do not prove that every run escapes;
    - "auto": "share" if all values are 0 or 1, else "bootstrap" if the Shapiro-Wilk test rejects normal differences
      at p < 0.01, else "t".

    Differences that are all equal (up to rounding) and not 0/1 outcomes give an interval of no width, and say so.

    Args:
        treatment: One value per seed, shape (seeds,).
        control: One value per seed, in the same order: pair i shares its seed.
        claim: Name of the claim in the ledger.
        direction: The claimed side: "less" (effect < margin), "greater" (effect > margin), or "within"
            (-margin < effect < margin: nothing that matters changes; needs a margin > 0).
        margin: The border, in the unit of the values.
        unit: Unit of the values, for the printed line.
        confidence: Level of the interval, in (0, 1).
        method: "auto", "t", "bootstrap" or "share".
        seed: Integer >= 0 for the bootstrap's resampling.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; fewer than 5 pairs; unequal
            lengths; a value that is NaN or infinite. A diverged run is a result: give it a score (such as the loss of
            a blind guess) and say so, rather than drop it with its partner.

    Example:

    >>> decayed = [0.11, 0.10, 0.12, 0.09, 0.11, 0.10]
    >>> constant = [0.15, 0.13, 0.17, 0.12, 0.16, 0.13]
    >>> print(compare(decayed, constant, claim="LR-1", unit="nats"))
    LR-1 supported: -0.0383 nats [-0.0487, -0.028], claimed < 0; 6 seeds, paired t

    Reference: Hesterberg 2015, The American Statistician 69(4); Newcombe 1998, Statistics in Medicine 17, 2635-2650,
    method 10.
    """
    claim = _check_claim(claim)
    treatment, control = _check_pairs(treatment, control)
    check_choice("direction", direction, ("less", "greater", "within"))
    margin = check_number("margin", margin, **({"above": 0} if direction == "within" else {}))
    confidence = check_number("confidence", confidence, above=0, below=1)
    check_choice("method", method, ("auto", *METHODS))
    seed = check_integer("seed", seed, at_least=0)
    differences = treatment - control
    if method == "auto":
        method = _fitting_method(treatment, control, differences)
    words = METHODS[method]
    if method == "share":
        low, high = _share_interval(treatment, control, confidence)
    elif _all_equal(differences, treatment, control):
        low = high = float(np.mean(differences))
        words = "all differences equal"
    elif method == "t":
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    else:
        low, high = _bootstrap_interval(differences, confidence, seed)
    if confidence != 0.95:
        words += f", {100 * confidence:g} % interval"
    return Verdict(
        claim=claim,
        notebook="",
        effect=float(np.mean(differences)) + 0.0,  # no "-0"
        low=float(low) + 0.0,
        high=float(high) + 0.0,
        unit=str(unit),
        seeds=len(differences),
        verdict=_decide(low, high, direction, margin),
        method=words,
        direction=direction,
        margin=margin,
    )


def exact(actual, expected, *, claim, tolerance, relative=False, unit=""):
    """Returns the verdict on an identity: "exact" if no entry differs by more than the tolerance, else "refuted".

    The measure is max |actual - expected|, divided by max |expected| if `relative`.

    Args:
        actual: Array, or number.
        expected: Array of the same shape.
        claim: Name of the claim in the ledger.
        tolerance: Largest difference that rounding explains, >= 0.
        relative: Whether the difference is taken relative to the largest entry of `expected`.
        unit: Unit of the difference, for the printed line.

    Raises:
        TypeError, ValueError: Shapes differ, a value is not finite, or an argument is out of its range.

    Example:

    >>> print(exact([1.0, 2.0], [1.0, 2.0 + 1e-7], claim="BN-5", tolerance=1e-5))
    BN-5 exact: largest difference 1e-07, tolerance 1e-05
    """
    claim, tolerance = _check_claim(claim), check_number("tolerance", tolerance, at_least=0)
    actual, expected = _check_finite("actual", actual), _check_finite("expected", expected)
    if actual.shape != expected.shape or actual.size == 0:
        raise ValueError(
            "`actual` and `expected` must be of one shape and not empty. "
            f"Received: shapes {actual.shape} and {expected.shape}"
        )
    difference = float(np.max(np.abs(actual - expected)))
    largest = float(np.max(np.abs(expected)))
    if relative and largest == 0:
        raise ValueError("`expected` must not be all zeros for a relative difference. Received: relative=True")
    difference = difference / largest if relative else difference
    return Verdict(
        claim=claim,
        notebook="",
        effect=difference,
        low=difference,
        high=difference,
        unit=str(unit),
        seeds=0,
        verdict="exact" if difference <= tolerance else "refuted",
        method="largest relative difference" if relative else "largest difference",
        direction="within",
        margin=tolerance,
    )


def agree(first, second):
    """Returns the first verdict if the second, of other seeds, says the same, and else the first as inconclusive.

    A verdict that a rerun would flip is no verdict. The numbers stay those of the first; the line names the second.

    Args:
        first: A `Verdict` from one block of seeds.
        second: A `Verdict` on the same claim from another block, disjoint from the first.

    Raises:
        ValueError: The two are on different claims, or decided by different borders or units.

    Example:

    >>> control = [3.0, 3.1, 3.2, 3.3, 3.4]
    >>> first = compare([2.0, 2.2, 2.1, 2.3, 2.5], control, claim="GD-4", unit="epochs")
    >>> second = compare([3.1, 3.0, 3.3, 3.2, 3.5], control, claim="GD-4", unit="epochs")
    >>> print(agree(first, second).summary())
    GD-4: inconclusive
    """
    for name in ("claim", "unit", "direction", "margin"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(
                f"`first` and `second` must have the same {name}. "
                f"Received: {getattr(first, name)!r} and {getattr(second, name)!r}"
            )
    if first.verdict == second.verdict:
        return dataclasses.replace(first, method=f"{first.method}, confirmed on {second.seeds} others")
    method = f"{first.method}, {first.verdict}, but {second.verdict} on {second.seeds} others"
    return dataclasses.replace(first, verdict="inconclusive", method=method)


def replicate(treatment, control, *, claim, **options):
    """Returns the verdict of the first half of the pairs, as inconclusive if the second half does not say the same.

    Each half goes through `compare` on its own, and `agree` joins the two: a verdict that a rerun with other seeds
    would flip is no verdict.

    Args:
        treatment: One value per seed, shape (seeds,): an even number of them, at least 10.
        control: One value per seed, in the same order: pair i shares its seed.
        claim: Name of the claim in the ledger.
        **options: Passed to `compare`: direction, margin, unit, ...

    Raises:
        TypeError, ValueError: As `compare`, for each half.

    Example:

    >>> control = np.linspace(3.0, 3.9, 10)
    >>> treatment = control - 0.5 + 0.1 * np.sin(np.arange(10))
    >>> print(replicate(treatment, control, claim="GD-4", unit="epochs"))
    GD-4 supported: -0.477 epochs [-0.562, -0.392], claimed < 0; 5 seeds, paired t, confirmed on 5 others
    """
    treatment, control = _check_pairs(treatment, control)
    half, odd = divmod(len(treatment), 2)
    if odd or half < LEAST_PAIRS:
        raise ValueError(
            f"`treatment` and `control` must hold two halves of at least {LEAST_PAIRS} pairs each. "
            f"Received: {len(treatment)} pairs"
        )
    halves = slice(0, half), slice(half, None)
    return agree(*(compare(treatment[one], control[one], claim=claim, **options) for one in halves))


class Ledger:
    """Keeps the verdicts of all notebooks in one file, verdicts.csv, a row for each claim of each notebook.

    A claim that a notebook records again replaces its own row; rows of other notebooks stay as they are. Numbers are
    rounded to four significant digits and rows sorted, so that the file changes only where a result does. Two
    notebooks may record at once, and a crash at any moment leaves the old file or the new one, whole.

    Args:
        notebook: Name of the notebook, such as "07_learning_rate_schedules".
        path: The file; None for verdicts.csv in `figures_folder()`.

    Raises:
        ValueError: The file has other columns than those of `Verdict`.

    Example:

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> ledger = Ledger("08_batch_normalization", path=folder.name + "/verdicts.csv")
    >>> print(ledger.record(exact(1.0, 1.0, claim="BN-5", tolerance=1e-5)))
    BN-5 exact: largest difference 0, tolerance 1e-05
    >>> [verdict.summary() for verdict in ledger.verdicts()]
    ['BN-5: exact']
    >>> folder.cleanup()
    """

    columns = tuple(field.name for field in dataclasses.fields(Verdict))

    def __init__(self, notebook, path=None):
        if not isinstance(notebook, str) or not notebook.strip():
            raise ValueError(f"`notebook` must be a name that is not empty. Received: notebook={notebook!r}")
        self.notebook = notebook
        self.path = figures_folder() / "verdicts.csv" if path is None else Path(path)

    def record(self, verdict):
        """Writes one `Verdict` to the file and returns it, so that it can be printed."""
        if not isinstance(verdict, Verdict):
            raise TypeError(f"`verdict` must be a Verdict. Received: verdict={verdict!r}")
        verdict = dataclasses.replace(verdict, notebook=self.notebook)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_name(self.path.name + ".lock")):
            rows = {(row["notebook"], row["claim"]): row for row in self._read()}
            rows[verdict.notebook, verdict.claim] = {
                name: f"{value:.4g}" if isinstance(value, float) else str(value)
                for name, value in dataclasses.asdict(verdict).items()
            }
            self._write([rows[key] for key in sorted(rows, key=lambda key: [_natural(part) for part in key])])
        return verdict

    def verdicts(self):
        """Returns all recorded verdicts, of every notebook, sorted by notebook and claim; rounded, as in the file."""
        types = {field.name: field.type for field in dataclasses.fields(Verdict)}
        return [Verdict(**{name: types[name](value) for name, value in row.items()}) for row in self._read()]

    def _read(self):
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
        if columns != self.columns or any(None in row.values() or None in row for row in rows):
            raise ValueError(
                f"`path` must be a file with the columns {', '.join(self.columns)}; delete it and run the notebooks "
                f"again. Received: {self.path} with the columns {', '.join(columns)}"
            )
        return rows

    def _write(self, rows):
        # The name is the same each time: what a crash left behind is overwritten, under the lock.
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def figures_folder():
    """Returns the folder for figures and verdicts, made if it is missing, wherever the notebook runs.

    That is the folder in the environment variable NNOPT_FIGURES if it is set (the tests do, to keep the tree clean),
    else figures/ of the repository: the one around the working directory, or the one nnopt is installed from.

    Raises:
        FileNotFoundError: There is no repository, as with nnopt installed as a plain package.

    Example:

    >>> figures_folder().is_dir()
    True
    """
    if os.environ.get("NNOPT_FIGURES"):
        folder = Path(os.environ["NNOPT_FIGURES"]).expanduser().absolute()
    else:
        places = [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]]
        roots = [
            place for place in places if (place / "notebooks").is_dir() and (place / "nnopt/evidence.py").is_file()
        ]
        if not roots:
            raise FileNotFoundError(
                "No repository of nnopt around the working directory: set the environment variable NNOPT_FIGURES to "
                f"the folder for figures and verdicts. Received: {Path.cwd()}"
            )
        folder = roots[0] / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _decide(low, high, direction, margin):
    if direction == "within":
        inside, outside = -margin < low and high < margin, low > margin or high < -margin
    else:
        below, above = high < margin, low > margin
        inside, outside = (below, above) if direction == "less" else (above, below)
    return "supported" if inside else "refuted" if outside else "inconclusive"


def _fitting_method(treatment, control, differences):
    if np.isin(np.concatenate([treatment, control]), (0, 1)).all():
        return "share"
    if _all_equal(differences, treatment, control):
        return "t"
    return "bootstrap" if stats.shapiro(differences).pvalue < NOT_NORMAL else "t"


def _all_equal(differences, treatment, control):
    scale = max(np.max(np.abs(treatment)), np.max(np.abs(control)))
    return np.ptp(differences) <= 1e-12 * scale


def _bootstrap_interval(differences, confidence, seed):
    pairs = len(differences)
    student = stats.t.ppf((1 + confidence) / 2, pairs - 1)
    widened = 2 * stats.norm.cdf(student * np.sqrt(pairs / (pairs - 1))) - 1
    result = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=widened,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return result.confidence_interval


def _share_interval(treatment, control, confidence):
    """Newcombe's interval: each share's Wilson interval, joined by the correlation of the pairs."""
    for name, values in (("treatment", treatment), ("control", control)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"`{name}` must hold only 0 and 1 with method='share'. Received: {name}={values}")
    pairs = len(treatment)
    (share_1, low_1, high_1), (share_2, low_2, high_2) = (
        (np.mean(values), *stats.binomtest(int(values.sum()), pairs).proportion_ci(confidence, method="wilson"))
        for values in (treatment, control)
    )
    both, neither = np.sum(treatment * control), np.sum((1 - treatment) * (1 - control))
    product = both * neither - np.sum(treatment * (1 - control)) * np.sum((1 - treatment) * control)
    if product > 0:
        product = max(product - pairs / 2, 0)
    spread = pairs**2 * np.sqrt(share_1 * (1 - share_1) * share_2 * (1 - share_2))
    correlation = product / spread if spread else 0.0

    def length(one, other):
        return np.sqrt(one**2 - 2 * correlation * one * other + other**2)

    effect = share_1 - share_2
    return effect - length(share_1 - low_1, high_2 - share_2), effect + length(high_1 - share_1, share_2 - low_2)


def _check_claim(claim):
    if not isinstance(claim, str) or not claim.strip() or "\n" in claim:
        raise ValueError(f"`claim` must be a name on one line, such as 'LR-1'. Received: claim={claim!r}")
    return claim


def _check_finite(name, values):
    try:
        values = np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be numbers. Received: {name}={values!r}") from error
    if not np.isfinite(values).all():
        places = np.flatnonzero(~np.isfinite(values)).tolist()
        raise ValueError(
            f"`{name}` must be finite: a diverged run is a result, so give it a score and say so rather than drop it. "
            f"Received: {name} with NaN or infinity at {places}"
        )
    return values


def _check_pairs(treatment, control):
    treatment, control = _check_finite("treatment", treatment), _check_finite("control", control)
    if treatment.ndim != 1 or treatment.shape != control.shape or len(treatment) < LEAST_PAIRS:
        raise ValueError(
            f"`treatment` and `control` must be of shape (seeds,), of equal length and at least {LEAST_PAIRS} long. "
            f"Received: shapes {treatment.shape} and {control.shape}"
        )
    return treatment, control


def _natural(name):
    """Sorts LR-2 before LR-10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


@contextlib.contextmanager
def _locked(path):
    """Holds a lock of the operating system's, which ends with its process: a crash leaves none to clear away."""
    while True:
        file = open(path, "ab")  # noqa: SIM115
        _lock(file)
        # Whoever held the lock before may have removed the file while we waited: then it locks nothing any more.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            os.unlink(path)
        file.close()


def _lock(file):
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
