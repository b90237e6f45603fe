"""The plan of a chapter, written down and committed before its runs, and the runs by blocks that it asks for."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from tqdm import tqdm

from nnopt.checks import check_integer, check_number
from nnopt.lab import evidence, results
from nnopt.lab.evidence import LEAST_BLOCKS, Claim
from nnopt.lab.grid import larger_is_better


@dataclasses.dataclass(frozen=True)
class Block:
    """One replication: the seed of its split of the data, the seeds that tune, the seeds that decide."""

    number: int
    seed: int
    tuning_seeds: tuple
    deciding_seeds: tuple


class Plan:
    """What a chapter will decide, and with which runs; its cell is tagged "plan" and committed before the full run.

    With NNOPT_FULL=1 in the environment all blocks are run and `close` records the rows; without it, `quick_blocks` are
    run, each line stands beside what the book recorded, and nothing is decided. NNOPT_SEED_SHIFT is added to
    `first_seed`, for a second run on other seeds. NNOPT_RESULTS names another folder for what is recorded.

    A row whose plan cell does not stand unchanged in the last commit is marked "exploratory" and never votes.

    Args:
        chapter: Name of the notebook, "07_learning_rate_schedules".
        claims: List of `Claim`.
        grids: Dict of what is tuned -> values, for the reader.
        budgets: Dict of what is fixed -> value, for the reader.
        blocks: Blocks of the full run, >= 8.
        quick_blocks: Blocks of a reader's run, >= 2.
        tuning_seeds: Seeds of a block that tune, >= 1.
        deciding_seeds: Seeds of a block that decide, >= 1.
        first_seed: Integer >= 0; block b has its seeds from first_seed + 1000 b on.
        resplit: Test over training examples where blocks re-split one data set; None where data are generated.
        scope: What the verdicts speak of: data, budget, settings a side.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or two claims have one name.
    """

    def __init__(
        self,
        chapter,
        claims,
        *,
        grids=None,
        budgets=None,
        blocks=10,
        quick_blocks=2,
        tuning_seeds=3,
        deciding_seeds=5,
        first_seed=0,
        resplit=None,
        scope="",
    ):
        if not all(isinstance(claim, Claim) for claim in claims):
            raise TypeError(f"`claims` must be a list of Claim. Received: {[type(one).__name__ for one in claims]}")
        self.chapter, self.claims = chapter, {claim.name: claim for claim in claims}
        if len(self.claims) != len(claims):
            raise ValueError(f"`claims` must have different names. Received: {[claim.name for claim in claims]}")
        self.grids, self.budgets, self.scope = grids or {}, budgets or {}, scope
        self.full = os.environ.get("NNOPT_FULL") == "1"
        check_integer("blocks", blocks, at_least=LEAST_BLOCKS)
        check_integer("quick_blocks", quick_blocks, at_least=2, at_most=blocks)
        self.count = blocks if self.full else quick_blocks
        self.tuning_seeds = check_integer("tuning_seeds", tuning_seeds, at_least=1, at_most=400)
        self.deciding_seeds = check_integer("deciding_seeds", deciding_seeds, at_least=1, at_most=500)
        shift = int(os.environ.get("NNOPT_SEED_SHIFT", "0"))
        self.first_seed = check_integer("first_seed", first_seed, at_least=0) + shift
        self.resplit = None if resplit is None else check_number("resplit", resplit, above=0)
        self.commit, self.digest = standing_plan(chapter)
        self._book = {row["claim"]: row for row in results.recorded() if row["chapter"] == chapter}
        self._decided, self._pairs = {}, []

    def blocks(self):
        """Returns the blocks of this run: all of them with NNOPT_FULL=1, else the first few."""
        blocks = []
        for number in range(self.count):
            seed = self.first_seed + 1000 * number
            tuning, deciding = seed + 1 + np.arange(self.tuning_seeds), seed + 500 + np.arange(self.deciding_seeds)
            blocks.append(Block(number, seed, tuple(tuning.tolist()), tuple(deciding.tolist())))
        return blocks

    def decide(self, name, treatment, control, thinned=()):
        """Returns the verdict on a planned claim, from values (blocks, seeds); see `evidence.decide`.

        Raises:
            ValueError: The claim is not in the plan or is decided already, or there are other blocks than the plan's.
        """
        claim = self._claim(name, exact=False)
        if len(treatment) != self.count:
            raise ValueError(f"`treatment` must have the plan's {self.count} blocks. Received: {len(treatment)}")
        resplit = self.resplit if claim.role == "primary" else None
        verdict = evidence.decide(claim, treatment, control, thinned=thinned, resplit=resplit)
        self._pairs += results.pairs_of(self.chapter, name, np.asarray(treatment), np.asarray(control))
        return self._keep(verdict, None if self.full else self._recorded(name))

    def exact(self, name, actual, expected, relative=False):
        """Returns the verdict on a planned identity; see `evidence.exact`."""
        return self._keep(evidence.exact(actual, expected, claim=self._claim(name, exact=True), relative=relative))

    def close(self):
        """Prints a line for each claim; in the full run records the rows and the raw pairs.

        Raises:
            ValueError: In the full run, a planned claim was not decided, or a row that an earlier plan recorded is
                missing from this one: a row once planned stays, whatever it says.
        """
        if self.full and (missing := [name for name in self.claims if name not in self._decided]):
            raise ValueError(f"Every planned claim must be decided. Received: none of {', '.join(missing)}")
        for name, verdict in self._decided.items():
            word = verdict.word if self.full or verdict.claim.exact else self._book.get(name, {}).get("word")
            print(f"{name}: {word}" if word else f"{name}: not recorded yet")
        folder = os.environ.get("NNOPT_RESULTS")
        if self.full or folder:
            rows = [results.row_of(verdict, self) for verdict in self._decided.values()]
            results.replace_chapter(folder or results.book_results(), self.chapter, rows, self._pairs)

    def _claim(self, name, exact):
        if name not in self.claims or self.claims[name].exact != exact or name in self._decided:
            kind = "an identity" if exact else "a claim"
            raise ValueError(f"`name` must be {kind} of the plan that is not decided yet. Received: name={name!r}")
        return self.claims[name]

    def _keep(self, verdict, book=None):
        marks = verdict.marks if self.commit else ("exploratory", *verdict.marks)
        kept = self._decided[verdict.claim.name] = dataclasses.replace(verdict, marks=marks)
        return dataclasses.replace(kept, book=book)

    def _recorded(self, name):
        row = self._book.get(name)
        if row is None:
            return "no full run yet"
        effect = row["line"].partition(", claimed")[0].rpartition(": ")[2]
        return f"{row['blocks']} blocks: {effect}, {row['word']}"


def run_blocks(plan, train, sides, along, metric, mode=None, natural=()):
    """Tunes every side of every block on its own seeds, then trains what was chosen on the deciding seeds.

    In the full run each side is also tuned on every second value of its grid, both halves, so that a verdict that hangs
    on the grid shows.

    Args:
        plan: A `Plan`.
        train: Function (block, grid, seeds, part) -> `SweepResult`; part is "validation" while tuning and "test" while
            deciding, and grid is a list of dicts as `sweep` takes it.
        sides: Dict name -> grid of that side, a dict whose entries hold one value each but for `along`. All sides must
            have equally many values there.
        along: Name of the entry that is tuned.
        metric: What is best after the last epoch on the tuning seeds, such as "val_loss".
        mode: "min" or "max"; by default what the metric's name says, as in `SweepResult.best`.
        natural: Values that may be chosen although they stand at an end of the grid, such as a dropout of 0.

    Returns:
        `BlockRuns`.

    Raises:
        ValueError: In the full run, an optimum at an end of a grid: widen it.
    """
    sign = -1 if larger_is_better(metric, mode) else 1
    if len({len(grid[along]) for grid in sides.values()}) != 1:
        sizes = {name: len(grid[along]) for name, grid in sides.items()}
        raise ValueError(f"`sides` must tune over equally many values of `{along}`. Received: {sizes}")
    runs, edges = BlockRuns(sides, along), []
    for block in tqdm(plan.blocks(), desc="tuning", unit="block"):
        runs.tuning.append(train(block, list(sides.values()), block.tuning_seeds, "validation"))
        picks = {name: _picks(runs.tuning[-1], sides[name], along, metric, sign, plan.full) for name in sides}
        runs.picked.append(picks)
        for name, pick in picks.items():
            values = list(sides[name][along])
            if pick["all"] in {values[0], values[-1]} - set(natural):
                edges.append(f"{name}, block {block.number}: {along}={pick['all']!r}")
    if edges and plan.full:
        raise ValueError(f"An optimum must not stand at an end of its grid: widen it. Received: {'; '.join(edges)}")
    for block, picks in zip(tqdm(plan.blocks(), desc="deciding", unit="block"), runs.picked):
        chosen = {name: [one for one in sides[name][along] if one in pick.values()] for name, pick in picks.items()}
        grid = [{**sides[name], along: values} for name, values in chosen.items()]
        runs.deciding.append(train(block, grid, block.deciding_seeds, "test"))
    return runs


class BlockRuns:
    """The runs of all blocks, as `run_blocks` made them.

    Attributes:
        tuning: List of `SweepResult`, one a block.
        deciding: The same, of the deciding seeds.
        picked: List of dicts side -> {"all", and in the full run "even", "odd"} -> the value chosen on that part of
            the grid.
    """

    def __init__(self, sides, along):
        self.sides, self.along = sides, along
        self.tuning, self.deciding, self.picked = [], [], []

    def picks(self, side):
        """Returns the tuned value of each block, a list."""
        return [picked[side]["all"] for picked in self.picked]

    def select(self, side, block, grid="all"):
        """Returns the deciding runs of a side in a block, a `SweepResult`."""
        chosen = {**_fixed(self.sides[side], self.along), self.along: self.picked[block][side][grid]}
        return self.deciding[block].select(**chosen)

    def values(self, side, metric, grid="all"):
        """Returns the values after the last epoch, (blocks, seeds)."""
        return np.stack([self.select(side, block, grid).final(metric) for block in range(len(self.deciding))])

    def pair(self, treatment, control, metric):
        """Returns the arguments `treatment`, `control` and `thinned` of `Plan.decide` for two sides."""
        full, *halves = [
            tuple(self.values(side, metric, grid) for side in (treatment, control)) for grid in self.picked[0][control]
        ]
        return {"treatment": full[0], "control": full[1], "thinned": halves}


def standing_plan(chapter):
    """Returns (commit, digest) if the plan cells that ran stand unchanged in the last commit, else ("", "")."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=root, capture_output=True, check=True, text=True).stdout.strip()

    try:
        root = results.book_folder()
        source, commit = git("show", f"HEAD:./notebooks/{chapter}.ipynb"), git("rev-parse", "--short=10", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "", ""
    source = plan_source(json.loads(source))
    return (commit, digest_of(source)) if source and source in _sources_that_ran() else ("", "")


def plan_source(book):
    """Returns the text of a notebook's cell tagged "plan", or an empty string; `book` is its JSON."""
    cells = ["".join(cell["source"]) for cell in book["cells"] if "plan" in cell["metadata"].get("tags", [])]
    return cells[0].strip() if len(cells) == 1 else ""


def digest_of(source):
    """Returns the first twelve digits of the SHA-256 of a plan cell's text."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _sources_that_ran():
    """Returns the texts of the notebook's cells that have run, as IPython keeps them."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return [] if shell is None else [cell.strip() for cell in shell.user_ns.get("In", [])]


def _fixed(grid, along):
    """Returns the entries of a side's grid that hold one value, as `SweepResult.select` takes them."""
    return {name: next(iter(values)) for name, values in grid.items() if name != along}


def _picks(result, grid, along, metric, sign, halves):
    values, fixed = list(grid[along]), _fixed(grid, along)
    scores = {value: sign * np.mean(result.select(**fixed, **{along: value}).final(metric)) for value in values}
    parts = {"all": values} | ({"even": values[0::2], "odd": values[1::2]} if halves else {})
    return {name: min(part, key=lambda value: (np.isnan(scores[value]), scores[value])) for name, part in parts.items()}
