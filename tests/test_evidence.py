import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nnopt.lab import evidence
from nnopt.lab.evidence import Ledger, Verdict, agree, compare, exact, figures_folder, replicate

PACKAGE = Path(evidence.__file__).parent
CONTROL = np.array([3.0, 3.1, 3.2, 3.3, 3.4, 3.5])
NOISE = np.array([0.01, -0.02, 0.03, 0.0, -0.01, 0.02])


def run_without_keras(code, *arguments):
    """Starts Python on `code`, in which nnopt.lab.evidence can be imported without the rest of the package."""
    start = f"""
        import os, signal, sys, types
        package = types.ModuleType("nnopt")
        package.__path__ = [{str(PACKAGE)!r}]
        sys.modules["nnopt"] = package
        from nnopt.lab import evidence
        """
    code = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_evidence_imports_nothing_of_nnopt_but_the_checks():
    process = run_without_keras("print(sorted(name for name in sys.modules if name.startswith(('nnopt', 'keras'))))")
    assert process.communicate()[0].strip() == "['nnopt', 'nnopt.checks', 'nnopt.lab.evidence']"


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_t_interval_is_that_of_scipys_paired_t_test(confidence):
    random = np.random.default_rng(0)
    treatment, control = random.normal(size=(2, 12))
    verdict = compare(treatment, control, claim="x", method="t", confidence=confidence)
    expected = stats.ttest_rel(treatment, control).confidence_interval(confidence)
    np.testing.assert_allclose([verdict.low, verdict.high], expected, rtol=1e-12)
    assert verdict.effect == pytest.approx(np.mean(treatment - control))


@pytest.mark.parametrize(
    ("shift", "direction", "margin", "expected"),
    [
        (-1.0, "less", 0.0, "supported"),
        (1.0, "less", 0.0, "refuted"),
        (0.0, "less", 0.0, "inconclusive"),
        (1.0, "greater", 0.0, "supported"),
        (-1.0, "greater", 0.0, "refuted"),
        (0.0, "greater", 0.0, "inconclusive"),
        (-1.0, "less", -2.0, "refuted"),
        (-1.0, "less", -0.5, "supported"),
        (1.0, "greater", 2.0, "refuted"),
        (0.0, "within", 0.5, "supported"),
        (1.0, "within", 0.5, "refuted"),
        (-1.0, "within", 0.5, "refuted"),
        (0.5, "within", 0.5, "inconclusive"),
    ],
)
def test_verdict_follows_from_the_side_of_the_margin_on_which_the_interval_lies(shift, direction, margin, expected):
    verdict = compare(CONTROL + shift + NOISE, CONTROL, claim="x", direction=direction, margin=margin)
    assert verdict.verdict == expected


def test_pairing_matters():
    treatment = CONTROL - 0.1 + NOISE
    assert compare(treatment, CONTROL, claim="x").verdict == "supported"
    assert compare(treatment, CONTROL[::-1], claim="x").verdict == "inconclusive"


def test_without_an_effect_one_interval_in_twenty_misses_zero():
    random = np.random.default_rng(1)
    verdicts = [compare(*random.normal(size=(2, 10)), claim="x", method="t").verdict for _ in range(1000)]
    decided = np.mean(np.array(verdicts) != "inconclusive")
    assert 0.03 < decided < 0.07


def test_widened_bootstrap_covers_better_than_the_plain_percentiles(monkeypatch):
    monkeypatch.setattr(evidence, "RESAMPLES", 499)
    random = np.random.default_rng(2)
    ours = plain = 0
    for _ in range(200):
        draws = random.exponential(size=10)
        verdict = compare(draws, np.zeros(10), claim="x", method="bootstrap")
        interval = stats.bootstrap(
            (draws,), np.mean, n_resamples=499, method="percentile", random_state=random
        ).confidence_interval
        ours += verdict.low <= 1 <= verdict.high
        plain += interval.low <= 1 <= interval.high
    assert ours / 200 >= 0.86
    assert ours > plain


def test_bootstrap_repeats_itself_under_one_seed():
    draws = np.random.default_rng(3).exponential(size=8)
    first, again, other = (compare(draws, np.zeros(8), claim="x", method="bootstrap", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_auto_takes_t_for_normal_and_bootstrap_for_plainly_other_differences():
    random = np.random.default_rng(4)
    normal, skewed = random.normal(size=20), np.append(random.normal(size=19), 30.0)
    assert stats.shapiro(normal).pvalue > 0.01 > stats.shapiro(skewed).pvalue
    assert compare(normal, np.zeros(20), claim="x").method == "paired t"
    assert compare(skewed, np.zeros(20), claim="x").method == "paired bootstrap"
    assert compare(normal > 0, np.zeros(20), claim="x").method == "paired shares"


def test_share_interval_is_newcombes_published_one():
    # Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10 on the table 36, 12, 2, 0.
    cells = [36, 12, 2, 0]
    verdict = compare(np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells), claim="x")
    assert (round(verdict.low, 4), round(verdict.high, 4)) == (0.0569, 0.3404)


# Probabilities of the pairs (1, 1), (1, 0), (0, 1), (0, 0).
@pytest.mark.parametrize(
    "cells", [(0.25, 0.25, 0.25, 0.25), (0.1, 0.6, 0.1, 0.2), (0.8, 0.1, 0.05, 0.05), (0, 1, 0, 0)]
)
def test_share_interval_covers_the_true_difference_over_all_outcomes(cells):
    pairs, covered = 8, 0.0
    for counts in itertools.product(range(pairs + 1), repeat=4):
        probability = stats.multinomial.pmf(counts, pairs, cells) if sum(counts) == pairs else 0
        if probability > 0:
            verdict = compare(np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts), claim="x")
            covered += probability * (verdict.low - 1e-9 <= cells[1] - cells[2] <= verdict.high + 1e-9)
    assert covered > 0.92  # an approximate interval, on eight pairs


def test_ten_escapes_of_ten_leave_room_for_doubt():
    verdict = compare(np.ones(10), np.zeros(10), claim="LR-3", direction="greater")
    assert verdict.verdict == "supported"
    assert 0.5 < verdict.low < 0.8
    assert verdict.high == 1
    same = compare(np.ones(10), np.ones(10), claim="LR-3", direction="greater")
    assert same.verdict == "inconclusive"
    assert same.low < 0 < same.high


@pytest.mark.parametrize(("shift", "expected"), [(-2.0, "supported"), (0.0, "inconclusive"), (2.0, "refuted")])
@pytest.mark.parametrize("method", ["auto", "t", "bootstrap"])
def test_equal_differences_give_an_interval_without_width_and_say_so(shift, expected, method):
    with np.errstate(all="raise"):
        verdict = compare(CONTROL + shift, CONTROL, claim="x", method=method)
    assert verdict.low == verdict.high == pytest.approx(shift)
    assert (verdict.verdict, verdict.method) == (expected, "all differences equal")


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"treatment": CONTROL[:4], "control": CONTROL[:4]}, ValueError, "at least 5"),
        ({"treatment": CONTROL[:5]}, ValueError, "equal length"),
        ({"treatment": CONTROL[:, None], "control": CONTROL[:, None]}, ValueError, "shape"),
        ({"treatment": [1, 2, np.nan, 4, 5, 6]}, ValueError, r"`treatment` must be finite.*\[2\]"),
        ({"control": [1, 2, 3, 4, np.inf, 6]}, ValueError, r"`control` must be finite.*\[4\]"),
        ({"treatment": list("abcdef")}, TypeError, "`treatment`"),
        ({"claim": ""}, ValueError, "`claim`"),
        ({"claim": 3}, ValueError, "`claim`"),
        ({"claim": "a\nb"}, ValueError, "`claim`"),
        ({"direction": "smaller"}, ValueError, "`direction`"),
        ({"direction": "within"}, ValueError, "`margin`"),
        ({"margin": np.nan}, ValueError, "`margin`"),
        ({"confidence": 95}, ValueError, "`confidence`"),
        ({"confidence": 1.0}, ValueError, "`confidence`"),
        ({"method": "z"}, ValueError, "`method`"),
        ({"method": "share"}, ValueError, "only 0 and 1"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": 0.5}, TypeError, "`seed`"),
    ],
)
def test_compare_names_the_argument_that_is_wrong(arguments, error, named):
    with pytest.raises(error, match=named):
        compare(**{"treatment": CONTROL, "control": CONTROL, "claim": "x", **arguments})


def test_printed_line_holds_everything_and_the_summary_no_number():
    verdict = compare(CONTROL - 0.5 + NOISE, CONTROL, claim="LR-1", unit="nats", margin=-0.1)
    assert str(verdict) == ("LR-1 supported: -0.495 nats [-0.515, -0.475], claimed < -0.1; 6 seeds, paired t")
    assert verdict.summary() == "LR-1: supported"
    assert "80 % interval" in str(compare(CONTROL + NOISE, CONTROL, claim="x", confidence=0.8))


def test_identity_within_the_tolerance_is_exact_and_beyond_it_refuted():
    expected = np.array([[0.0, 10.0]])
    assert exact(expected + 1e-3, expected, claim="x", tolerance=2e-3).verdict == "exact"
    assert exact(expected + 1e-3, expected, claim="x", tolerance=5e-4).verdict == "refuted"
    relative = exact(expected + 1e-3, expected, claim="x", tolerance=5e-4, relative=True)
    assert relative.verdict == "exact"
    assert relative.effect == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"actual": [1.0]}, "one shape"),
        ({"actual": [], "expected": []}, "not empty"),
        ({"actual": [1.0, np.nan]}, "`actual` must be finite"),
        ({"expected": [0.0, 0.0], "relative": True}, "`expected`"),
        ({"tolerance": -1.0}, "`tolerance`"),
        ({"claim": " "}, "`claim`"),
    ],
)
def test_exact_names_the_argument_that_is_wrong(arguments, named):
    with pytest.raises(ValueError, match=named):
        exact(**{"actual": [1.0, 2.0], "expected": [1.0, 2.0], "claim": "x", "tolerance": 0.1, **arguments})


def test_two_blocks_of_seeds_must_agree():
    less, more, none = (compare(CONTROL + shift + NOISE, CONTROL, claim="x") for shift in (-1, 1, 0))
    assert agree(less, less).verdict == "supported"
    assert agree(more, more).verdict == "refuted"
    for first, second in [(less, more), (more, less), (less, none), (none, less)]:
        joint = agree(first, second)
        assert joint.verdict == "inconclusive"
        assert joint.effect == first.effect
        assert second.verdict in str(joint)


def test_replicate_decides_on_the_first_half_and_keeps_what_the_second_confirms():
    generator = np.random.default_rng(0)
    control, noise = generator.normal(size=20), 0.1 * generator.normal(size=20)
    lower = control - 1 + noise
    verdict = replicate(lower, control, claim="A", unit="nats")
    alone = compare(lower[:10], control[:10], claim="A", unit="nats")
    assert (verdict.verdict, verdict.effect, verdict.low, verdict.seeds) == ("supported", alone.effect, alone.low, 10)
    assert verdict.method.endswith("confirmed on 10 others")
    flipped = np.where(np.arange(20) < 10, lower, control + 1 + noise)
    assert replicate(flipped, control, claim="A").verdict == "inconclusive"
    assert replicate(lower, control, claim="A", direction="greater", margin=0.5).verdict == "refuted"


@pytest.mark.parametrize("pairs", [5, 8, 11])
def test_replicate_refuses_pairs_that_do_not_make_two_halves(pairs):
    with pytest.raises(ValueError, match=rf"two halves of at least 5 pairs each\. Received: {pairs} pairs"):
        replicate(np.arange(pairs), np.zeros(pairs), claim="A")


@pytest.mark.parametrize("changed", [{"claim": "y"}, {"unit": "%"}, {"direction": "greater"}, {"margin": 1.0}])
def test_blocks_on_different_questions_cannot_agree(changed):
    first = compare(CONTROL, CONTROL + NOISE, claim="x")
    with pytest.raises(ValueError, match=next(iter(changed))):
        agree(first, dataclasses.replace(first, **changed))


def test_ledger_gives_back_what_was_recorded_in_four_digits(tmp_path):
    verdict = compare(CONTROL * 1.2345678 + NOISE, CONTROL, claim='LR-1, "final" loss', unit="nats")
    ledger = Ledger("07", tmp_path / "new" / "verdicts.csv")
    assert ledger.verdicts() == []
    returned = ledger.record(verdict)
    assert returned == dataclasses.replace(verdict, notebook="07")
    (read,) = ledger.verdicts()
    assert read.effect == pytest.approx(verdict.effect, rel=1e-3)
    assert read.effect == float(f"{verdict.effect:.4g}")
    rounded = {name: getattr(read, name) for name in ("effect", "low", "high")}
    assert read == dataclasses.replace(returned, **rounded)
    assert ledger.path.read_text().startswith("claim,notebook,effect,low,high,unit,seeds,verdict,method,")


def test_recording_again_replaces_the_row_and_leaves_those_of_other_notebooks(tmp_path):
    path = tmp_path / "verdicts.csv"
    identity = exact(1.0, 1.0, claim="LR-2", tolerance=0.1)
    Ledger("08", path).record(identity)
    Ledger("07", path).record(dataclasses.replace(identity, claim="LR-10"))
    before = path.read_text().splitlines()
    Ledger("07", path).record(identity)
    Ledger("07", path).record(dataclasses.replace(identity, verdict="refuted"))
    assert [(row.notebook, row.claim, row.verdict) for row in Ledger("x", path).verdicts()] == [
        ("07", "LR-2", "refuted"),
        ("07", "LR-10", "exact"),
        ("08", "LR-2", "exact"),
    ]
    assert set(before) < set(path.read_text().splitlines())


def test_order_of_recording_does_not_change_the_file(tmp_path):
    verdicts = [exact(1.0, 1.0, claim=claim, tolerance=0.1) for claim in ("B-2", "A", "B-10", "B-1")]
    for name, order in [("a.csv", [0, 1, 2, 3, 1]), ("b.csv", [3, 2, 1, 0])]:
        for place in order:
            Ledger("07", tmp_path / name).record(verdicts[place])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_threads_that_record_at_once_lose_no_row(tmp_path):
    def record(notebook):
        for number in range(5):
            verdict = exact(1.0, 1.0, claim=f"C-{number}", tolerance=0.1)
            Ledger(notebook, tmp_path / "verdicts.csv").record(verdict)

    threads = [threading.Thread(target=record, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger("x", tmp_path / "verdicts.csv").verdicts()) == 30
    assert os.listdir(tmp_path) == ["verdicts.csv"]


def test_processes_that_record_at_once_lose_no_row(tmp_path):
    code = """
        for number in range(20):
            verdict = evidence.exact(1.0, 1.0, claim=f"C-{number}", tolerance=0.1)
            evidence.Ledger(sys.argv[1], sys.argv[2]).record(verdict)
        """
    path = tmp_path / "verdicts.csv"
    processes = [run_without_keras(code, notebook, path) for notebook in ("a", "b", "c")]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(Ledger("x", path).verdicts()) == 60
    assert os.listdir(tmp_path) == ["verdicts.csv"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_kill_between_write_and_rename_leaves_the_old_file_and_no_lock(tmp_path):
    path = tmp_path / "verdicts.csv"
    verdict = exact(1.0, 1.0, claim="BN-5", tolerance=0.1)
    Ledger("08", path).record(verdict)
    before = path.read_bytes()
    code = """
        evidence.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        verdict = evidence.exact(2.0, 2.0, claim="NEW", tolerance=0.1)
        evidence.Ledger("08", sys.argv[1]).record(verdict)
        """
    assert run_without_keras(code, path).wait(60) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert (tmp_path / "verdicts.csv.tmp").exists()
    Ledger("09", path).record(verdict)
    assert len(Ledger("x", path).verdicts()) == 2
    assert os.listdir(tmp_path) == ["verdicts.csv"]


@pytest.mark.parametrize("content", ["", "claim,verdict\nLR-1,supported\n", ",".join(Ledger.columns) + "\nLR-1,07\n"])
def test_ledger_refuses_a_file_of_another_form_and_leaves_it(tmp_path, content):
    path = tmp_path / "verdicts.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="columns"):
        Ledger("07", path).record(exact(1.0, 1.0, claim="x", tolerance=0.1))
    assert path.read_text() == content


def test_ledger_names_the_argument_that_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="`notebook`"):
        Ledger("", tmp_path / "verdicts.csv")
    with pytest.raises(TypeError, match="`verdict`"):
        Ledger("07", tmp_path / "verdicts.csv").record("supported")


def test_figures_go_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("NNOPT_FIGURES", str(tmp_path / "pictures"))
    assert figures_folder() == tmp_path / "pictures"
    assert figures_folder().is_dir()
    assert Ledger("07").path == tmp_path / "pictures" / "verdicts.csv"


def test_figures_folder_is_that_of_the_repository_around_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("NNOPT_FIGURES", raising=False)
    for folder in ("notebooks/solutions", "nnopt"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "nnopt/evidence.py").touch()
    monkeypatch.chdir(tmp_path / "notebooks/solutions")
    assert figures_folder() == tmp_path / "figures"


def test_figures_folder_outside_a_repository_is_that_of_the_package_or_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv("NNOPT_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy/nnopt").mkdir(parents=True)
    monkeypatch.setattr(evidence, "__file__", str(tmp_path / "copy/nnopt/evidence.py"))
    with pytest.raises(FileNotFoundError, match="NNOPT_FIGURES"):
        figures_folder()
    (tmp_path / "copy/nnopt/evidence.py").touch()
    (tmp_path / "copy/notebooks").mkdir()
    assert figures_folder() == tmp_path / "copy/figures"


def test_a_verdict_cannot_be_changed():
    verdict = exact(1.0, 1.0, claim="x", tolerance=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.verdict = "supported"
    assert isinstance(verdict, Verdict)
