"""A plan that stands before the runs: what it refuses, what it records, and the runs by blocks."""

import json
import subprocess

import numpy as np
import pytest

from nnopt.lab import Claim, Plan, plan, results, run_blocks

CHAPTER = "42_a_chapter"
SOURCE = "PLAN = lab.Plan(...)"
CLAIMS = [
    Claim("LR-1", "a statement", role="primary", scale="ratio", matters=0.05, unit="loss"),
    Claim("LR-1 same", exact=True, tolerance=1e-6),
]
RUNS = np.exp(np.random.default_rng(0).normal(0, 0.05, size=(2, 8, 3))) * np.array([0.5, 1.0])[:, None, None]


class Shell:
    def __init__(self, *cells):
        self.user_ns = {"In": list(cells)}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A repository whose only chapter has the plan cell SOURCE, committed; a kernel has run that cell."""
    (tmp_path / "nnopt" / "lab").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    commit(tmp_path, SOURCE)
    monkeypatch.setattr(plan, "_sources_that_ran", lambda: [SOURCE])
    for name in ("NNOPT_FULL", "NNOPT_RESULTS", "NNOPT_SEED_SHIFT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def commit(folder, source):
    cell = {"cell_type": "code", "source": [source], "metadata": {"tags": ["plan"]}}
    (folder / "notebooks" / f"{CHAPTER}.ipynb").write_text(json.dumps({"cells": [cell]}))
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "--allow-empty", "-m", "a plan"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def make(claims=CLAIMS, **options):
    return Plan(CHAPTER, claims, **{"blocks": 8, "deciding_seeds": 3, **options})


def full_run(monkeypatch, claims=CLAIMS):
    monkeypatch.setenv("NNOPT_FULL", "1")
    made = make(claims)
    made.decide("LR-1", *RUNS)
    made.exact("LR-1 same", 1.0, 1.0)
    return made


def test_a_full_run_records_rows_and_raw_pairs(book, monkeypatch, capsys):
    full_run(monkeypatch).close()
    assert capsys.readouterr().out == "LR-1: supported\nLR-1 same: exact\n"
    rows = results.recorded()
    assert [(row["claim"], row["word"], row["role"]) for row in rows] == [
        ("LR-1", "supported", "primary"),
        ("LR-1 same", "exact", "secondary"),
    ]
    assert rows[0]["digest"] == plan.digest_of(SOURCE)
    assert rows[0]["plan"]
    pairs = results.read(book / "figures/results/pairs.csv")
    again = np.log([float(pair["treatment"]) / float(pair["control"]) for pair in pairs]).reshape(8, 3)
    assert again.mean() == pytest.approx(float(rows[0]["effect"]), rel=1e-4)


def test_a_second_full_run_replaces_the_chapters_rows_and_no_others(book, monkeypatch):
    full_run(monkeypatch).close()
    folder = book / "figures/results"
    foreign = {**results.recorded()[0], "chapter": "41_another"}
    results.write(folder / "verdicts.csv", results.VERDICTS, [*results.recorded(), foreign])
    before = (folder / "pairs.csv").read_bytes()
    full_run(monkeypatch).close()
    assert [row["chapter"] for row in results.recorded()] == ["41_another", CHAPTER, CHAPTER]
    assert (folder / "pairs.csv").read_bytes() == before


def test_a_quick_run_stands_beside_the_books_and_records_nothing(book, monkeypatch, capsys):
    full_run(monkeypatch).close()
    folder = book / "figures/results"
    marked = [{**row, "line": row["line"].replace("supported:", "supported (halves of the grid: refuted, supported):")}
              for row in results.recorded()]  # fmt: skip
    results.write(folder / "verdicts.csv", results.VERDICTS, marked)
    before = (folder / "verdicts.csv").read_bytes()
    monkeypatch.delenv("NNOPT_FULL")
    monkeypatch.setenv("NNOPT_RESULTS", "")
    quick = make(quick_blocks=2)
    line = str(quick.decide("LR-1", *RUNS[:, :2]))
    assert line.startswith("LR-1 here, 2 blocks: loss ")
    assert "; the book, 8 blocks: loss" in line
    assert line.endswith("supported")
    quick.close()
    assert (book / "figures/results/verdicts.csv").read_bytes() == before


def test_a_changed_plan_cell_makes_rows_exploratory_and_they_do_not_vote(book, monkeypatch):
    monkeypatch.setattr(plan, "_sources_that_ran", lambda: [SOURCE + "  # another margin"])
    full_run(monkeypatch).close()
    rows = results.recorded()
    assert rows[0]["marks"].startswith("exploratory")
    words = {line["id"]: line["word"] for line in results.statements(rows)}
    assert words["LR-1"] == "not measured yet"


def test_rows_whose_plan_cell_changed_afterwards_do_not_vote(book, monkeypatch):
    full_run(monkeypatch).close()
    now = {CHAPTER: plan.digest_of(SOURCE)}
    later = {CHAPTER: plan.digest_of(SOURCE + " changed")}
    word = {n: {line["id"]: line["word"] for line in results.statements(results.recorded(), digests=d)}["LR-1"]
            for n, d in (("now", now), ("later", later))}  # fmt: skip
    assert word == {"now": "holds", "later": "not measured yet"}


def test_a_planned_row_that_is_deleted_is_caught(book, monkeypatch):
    full_run(monkeypatch).close()
    fewer = make(CLAIMS[1:])
    fewer.exact("LR-1 same", 1.0, 1.0)
    with pytest.raises(ValueError, match=r"once planned must stay.*LR-1"):
        fewer.close()


def test_a_claim_that_was_not_decided_is_caught(book, monkeypatch):
    monkeypatch.setenv("NNOPT_FULL", "1")
    made = make()
    made.decide("LR-1", *RUNS)
    with pytest.raises(ValueError, match=r"must be decided.*LR-1 same"):
        made.close()


def test_blocks_have_seeds_of_their_own_and_a_second_run_has_others(book, monkeypatch):
    monkeypatch.setenv("NNOPT_FULL", "1")
    first = [seed for block in make().blocks() for seed in (block.seed, *block.tuning_seeds, *block.deciding_seeds)]
    monkeypatch.setenv("NNOPT_SEED_SHIFT", "100000")
    second = [seed for block in make().blocks() for seed in (block.seed, *block.tuning_seeds, *block.deciding_seeds)]
    assert len(set(first + second)) == 2 * 8 * 7


@pytest.mark.parametrize(
    ("options", "named"),
    [({"blocks": 7}, "blocks"), ({"quick_blocks": 1}, "quick_blocks"), ({"tuning_seeds": 0}, "tuning_seeds"),
     ({"deciding_seeds": 0}, "deciding_seeds"), ({"first_seed": -1}, "first_seed"), ({"resplit": 0}, "resplit"),
     ({"claims": ["LR-1"]}, "claims"), ({"claims": [CLAIMS[0]] * 2}, "claims")],
)  # fmt: skip
def test_a_plan_names_the_argument_that_is_wrong(book, options, named):
    with pytest.raises((TypeError, ValueError), match=f"`{named}`"):
        make(**options)


def test_a_plan_decides_only_what_it_names_once_and_on_its_own_blocks(book):
    made = make()
    with pytest.raises(ValueError, match="`name`"):
        made.decide("LR-9", *RUNS[:, :2])
    with pytest.raises(ValueError, match="2 blocks"):
        made.decide("LR-1", *RUNS)
    made.decide("LR-1", *RUNS[:, :2])
    with pytest.raises(ValueError, match="`name`"):
        made.decide("LR-1", *RUNS[:, :2])


class Curves:
    """What `run_blocks` needs of a SweepResult: the final loss is the distance of the rate from the side's best."""

    def __init__(self, runs):
        self.runs = runs

    def select(self, **entries):
        return Curves([run for run in self.runs if entries.items() <= run.items()])

    def final(self, metric):
        return np.array([run[metric] for run in self.runs])


def train(block, grid, seeds, part):
    runs = []
    for side in grid:
        (best,) = side["best"]
        for rate in side["rate"]:
            loss = abs(np.log(rate / best)) + 0.1
            runs += [{"best": best, "rate": rate, "seed": seed, "loss": loss + 1e-3 * (seed % 7)} for seed in seeds]
    return Curves(runs)


RATES = [0.01, 0.03, 0.1, 0.3, 1.0]


def test_each_side_is_tuned_on_all_and_on_both_halves_of_its_grid(book, monkeypatch):
    monkeypatch.setenv("NNOPT_FULL", "1")
    sides = {"a": {"best": [0.1], "rate": RATES}, "b": {"best": [0.3], "rate": RATES}}
    runs = run_blocks(make(), train, sides, along="rate", metric="loss")
    assert runs.picked[0] == {
        "a": {"all": 0.1, "even": 0.1, "odd": 0.3},
        "b": {"all": 0.3, "even": 0.1, "odd": 0.3},
    }
    assert runs.picks("b") == [0.3] * 8
    assert runs.values("a", "loss").shape == (8, 3)
    pair = runs.pair("b", "a", "loss")
    np.testing.assert_allclose(pair["treatment"], pair["control"])
    (_, (treatment, control)) = pair["thinned"]
    assert np.all(treatment < control)


def test_a_quick_run_decides_nothing_and_so_trains_no_halves(book):
    sides = {"a": {"best": [0.1], "rate": RATES}, "b": {"best": [0.3], "rate": RATES}}
    runs = run_blocks(make(), train, sides, along="rate", metric="loss")
    assert runs.picked == [{"a": {"all": 0.1}, "b": {"all": 0.3}}] * 2
    assert [len(one.runs) for one in runs.deciding] == [6, 6]
    assert runs.pair("b", "a", "loss")["thinned"] == []


def test_an_optimum_at_the_end_of_its_grid_stops_the_full_run(book, monkeypatch):
    sides = {"a": {"best": [1.0], "rate": RATES}, "b": {"best": [0.3], "rate": RATES}}
    assert run_blocks(make(), train, sides, along="rate", metric="loss").picks("a") == [1.0, 1.0]
    monkeypatch.setenv("NNOPT_FULL", "1")
    with pytest.raises(ValueError, match=r"widen it.*a, block 0: rate=1\.0"):
        run_blocks(make(), train, sides, along="rate", metric="loss")
    assert run_blocks(make(), train, sides, along="rate", metric="loss", natural=[1.0]).picks("a") == [1.0] * 8


def test_sides_with_grids_of_unequal_size_are_refused(book):
    sides = {"a": {"best": [0.1], "rate": RATES}, "b": {"best": [0.3], "rate": RATES[1:]}}
    with pytest.raises(ValueError, match="equally many"):
        run_blocks(make(), train, sides, along="rate", metric="loss")
