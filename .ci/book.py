#!/usr/bin/env python
"""The deliberate run behind the committed outputs, figures and results.

    .ci/book.py                                   every chapter and every solution, two side by side
    .ci/book.py notebooks/07_*.ipynb              some of them
    .ci/book.py --again ...                       also those that are done already
    .ci/book.py --compare notebooks/07_*.ipynb    a quick run beside the ledger: an opposite word fails
    .ci/book.py --second NAME --shift 100000 ...  the full run once more on other seeds, on KERAS_BACKEND's backend:
                                                  its rows go to figures/results/NAME/, its outputs nowhere
    .ci/book.py --tables                          only statements.csv and the README's table, from verdicts.csv

A chapter with a cell tagged "plan" is run in full, and only if that cell stands unchanged in the last commit; the
others and the solutions are run as they are. What ends is kept at once and skipped by the next call, as long as
neither the notebook's code nor the package changes. Nothing is stored that no reader should see: errors, warnings,
paths of this machine, an object where a semicolon was forgotten, files of a megabyte and more.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from nnopt.lab import plan, results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "figures" / "results"
LEDGER = threading.Lock()
DONE = ROOT / ".book"  # a mark for each notebook that is done; not in git


def execute(path, store=True):
    """Executes one notebook in place and returns the seconds it took, the kernel's start included."""
    book = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        book,
        timeout=1800,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    if store:
        with kept_if_refused(path, book):
            check(path, book)
        nbformat.write(book, path)
    return seconds


@contextlib.contextmanager
def kept_if_refused(path, book):
    """Leaves what a run gave in .book/refused/, where it can be read, if it cannot be stored: half an hour may hang."""
    try:
        yield
    except SystemExit as error:
        kept = ROOT / ".book" / "refused" / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, kept)
        raise SystemExit(f"{error}\nThe outputs are in {kept}") from error


def check(path, book):
    """Stops at what no reader should see in a notebook."""
    text = nbformat.writes(book)
    if len(text.encode()) >= 1_000_000:
        raise SystemExit(f"{path}: {len(text.encode())} bytes; the limit is a megabyte")
    for number, cell in enumerate(book.cells):
        for output in cell.get("outputs", []):
            shown = output.get("text") or str(output.get("data", {}).get("text/plain", ""))
            if output.get("name") == "stderr" or "WARNING:" in shown:
                raise SystemExit(f"{path}, cell {number}: warnings in the output:\n{shown}")
            if str(ROOT) in shown or str(Path.home()) + os.sep in shown or "/tmp/" in shown:
                raise SystemExit(f"{path}, cell {number}: a path of this machine in the output:\n{shown}")
            if output["output_type"] == "execute_result" and re.match(r"\[?(<|[A-Z]\w*\()", shown):
                raise SystemExit(f"{path}, cell {number}: an object: end the last line with `;`:\n{shown}")


def plan_of(path):
    """Returns the text of a chapter's plan cell, or an empty string.

    Raises:
        SystemExit: It does not stand unchanged in the last commit.
    """
    source = plan.plan_source(json.loads(path.read_text(encoding="utf-8")))
    if source:
        show = ["git", "show", f"HEAD:./{path.name}"]
        committed = subprocess.run(show, cwd=path.parent, capture_output=True, text=True)
        if committed.returncode or plan.plan_source(json.loads(committed.stdout)) != source:
            raise SystemExit(f"{path.name}: commit the plan cell before its full run")
    return source


def fingerprint(path):
    """Returns what decides a notebook's outputs: its code and the package's."""
    digest = hashlib.sha256()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode())
    for module in sorted((ROOT / "nnopt").rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def run_all(paths, again, environment):
    """Runs notebooks two side by side, each in a process of one thread, longest first; stops at the first failure."""
    waiting = []
    for path in paths:
        mark = DONE / path.parent.name / path.stem
        if again or not mark.exists() or mark.read_text() != fingerprint(path):
            waiting.append(path)
        else:
            print(f"{path.relative_to(ROOT)}: done already", flush=True)
    waiting.sort(key=lambda path: not plan_of(path))
    with ThreadPoolExecutor(2) as pool:
        return all(pool.map(lambda path: run_one(path, environment), waiting))


def run_one(path, environment, store=True, folder=RESULTS):
    """Runs a notebook in a process of its own and takes what it recorded into the ledger; returns whether it ended."""
    full = bool(plan_of(path))
    print_before = fingerprint(path)
    with tempfile.TemporaryDirectory() as recorded:
        environment = {**os.environ, "TQDM_DISABLE": "1", "TF_NUM_INTRAOP_THREADS": "1", **environment}
        environment.update({"NNOPT_FULL": "1", "NNOPT_RESULTS": recorded} if full else {})
        command = [sys.executable, __file__, "--one", str(path)] + ([] if store else ["--do-not-store"])
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"{path.relative_to(ROOT)}: {(ended.stdout or ended.stderr[-6000:]).strip()}", flush=True)
        if ended.returncode:
            if any(Path(recorded).iterdir()):  # the rows of a run whose outputs were refused
                shutil.copytree(recorded, DONE / "refused" / path.stem, dirs_exist_ok=True)
            return False
        if full:
            with LEDGER:
                take(path.stem, Path(recorded), folder, store)
    if store:
        mark = DONE / path.parent.name / path.stem
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(print_before)
    return True


def take(chapter, recorded, folder, store):
    """Takes what a chapter recorded into the ledger; raw pairs only of the book's own run."""
    rows, pairs = (results.read(recorded / name) for name in ("verdicts.csv", "pairs.csv"))
    results.replace_chapter(folder, chapter, rows, pairs if store else [])


def second(paths, name, shift):
    """Runs chapters in full on other seeds, keeps their rows under `name` and says how many words were kept."""
    folder, good = RESULTS / name, True
    with tempfile.TemporaryDirectory() as figures:
        environment = {"NNOPT_FIGURES": figures, "NNOPT_SEED_SHIFT": str(shift)}
        for path in paths:
            good = run_one(path, environment, store=False, folder=folder) and good
    with contextlib.suppress(FileNotFoundError):
        (folder / "pairs.csv").unlink()
    for path in paths:
        good = compare_rows(path.stem, results.recorded(folder)) and good
    return good


def compare(path):
    """Runs a chapter quickly, aside, and sets its words beside the ledger's; returns False for an opposite word."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "notebooks" / path.name
        copy.parent.mkdir()
        shutil.copy(path, copy)
        environment = {"NNOPT_RESULTS": folder, "NNOPT_FIGURES": folder, "TQDM_DISABLE": "1"}
        command = [sys.executable, __file__, "--one", str(path), "--do-not-store"]
        ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if ended.returncode:
            print(f"{path.name}: {ended.stderr[-6000:]}")
            return False
        return compare_rows(path.stem, results.recorded(folder))


def compare_rows(chapter, rows):
    """Prints how the words of other rows of a chapter differ from the ledger's; returns False for an opposite word."""
    ledger = {row["claim"]: row for row in results.recorded(RESULTS) if row["chapter"] == chapter}
    rows = [row for row in rows if row["chapter"] == chapter and row["claim"] in ledger]
    turned = 0
    for row in rows:
        book, here = ledger[row["claim"]]["word"], row["word"]
        opposite = {book, here} == {"supported", "refuted"}
        turned += opposite
        if book != here:
            print(f"{'OPPOSITE' if opposite else 'differs'}: {row['claim']}: the book {book}, here {row['line']}")
    kept = sum(ledger[row["claim"]]["word"] == row["word"] for row in rows)
    print(f"{chapter}: {kept} of {len(rows)} words kept, {turned} turned into the opposite", flush=True)
    return not turned


def write_tables():
    """Writes statements.csv, and the README's tables, from verdicts.csv and the second runs."""
    digests = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = plan.plan_source(json.loads(path.read_text(encoding="utf-8")))
        digests[path.stem] = plan.digest_of(source) if source else ""
    again = [row for path in sorted(RESULTS.glob("*/verdicts.csv")) for row in results.recorded(path.parent)]
    rows = results.recorded(RESULTS)
    lines = results.statements(rows, again, digests)
    results.write(RESULTS / "statements.csv", results.COLUMNS, lines)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"(<!-- verdicts -->\n|<!-- end of verdicts -->)", text)
    parts[2] = tables(rows, lines)
    path.write_text("".join(parts), encoding="utf-8")


def tables(rows, lines):
    """Returns the README's tables: the statements that are decided, and each planned row in words."""
    decided = [line for line in lines if line["rows"]]
    waiting = [line["id"] for line in lines if line["word"] == "not measured yet"]
    parts = ["| | the statement, in our words | word | rows | scope |", "|---|---|---|---|---|"]
    for line in decided:
        cells = line["id"], line["statement"], f"**{line['word']}**{_marks(line['marks'])}", line["rows"], line["scope"]
        parts.append(f"| {' | '.join(cells)} |")
    parts += ["", *([f"**Not measured yet:** {', '.join(waiting)}."] if waiting else []), ""]
    parts += ["<details><summary>Every planned row, with its numbers</summary>", ""]
    parts += [f"- {row['line']}" for row in rows]
    return "\n".join([*parts, "", "</details>", ""])


def _marks(marks):
    return f" ({marks})" if marks else ""


def machine():
    """Returns the processor, the system and the versions of this run."""
    names = ("tensorflow", "keras", "numpy", "scipy")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    place = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    return f"{place}, Python {platform.python_version()}, {packages}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them unless given")
    parser.add_argument("--again", action="store_true", help="also those that are done already")
    parser.add_argument("--compare", action="store_true", help="quick runs beside the ledger")
    parser.add_argument("--second", metavar="NAME", help="a full run on other seeds, kept under that name")
    parser.add_argument("--shift", type=int, default=100_000, help="what is added to every seed of the second run")
    parser.add_argument("--tables", action="store_true", help="execute nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--do-not-store", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        seconds = execute(arguments.notebooks[0], store=not arguments.do_not_store)
        print(f"{seconds:.0f} s")
        return 0
    every = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))
    paths = [path.resolve() for path in arguments.notebooks] or every
    chapters = [path for path in paths if path.parent.name == "notebooks" and plan_of(path)]
    if arguments.tables:
        good = True
    elif arguments.compare:
        good = all([compare(path) for path in chapters])
    elif arguments.second:
        good = second(chapters, arguments.second, arguments.shift)
    else:
        good = run_all(paths, arguments.again, {})
        print(f"on {machine()}")
    if good and not arguments.compare:
        write_tables()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
