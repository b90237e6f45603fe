#!/usr/bin/env python
"""The deliberate run behind the committed outputs, figures and verdicts.

    .ci/book.py                                    every chapter and every solution, then the README's verdicts
    .ci/book.py notebooks/07_*.ipynb               some of them
    .ci/book.py --readme                           only the README's verdicts, from figures/verdicts.csv

Executes each notebook in place and refuses to store what no reader should see: errors, warnings, paths of this
machine, an object where a semicolon was forgotten, files of a megabyte and more. What a chapter no longer claims leaves
figures/verdicts.csv.
"""

import argparse
import csv
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = ROOT / "figures" / "verdicts.csv"
WORDS = ("supported", "refuted", "inconclusive", "exact")


def execute(path):
    """Executes one notebook in place and returns the seconds it took, the kernel's start included."""
    book = nbformat.read(path, as_version=4)
    forget(path.stem if path.parent.name == "notebooks" else None)
    start = time.perf_counter()
    NotebookClient(
        book,
        timeout=600,
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
    check(path, book)
    nbformat.write(book, path)
    return seconds


def check(path, book):
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


def forget(notebook):
    """Takes a chapter's rows out of the ledger, so that only what it still claims comes back."""
    if notebook is None or not VERDICTS.exists():
        return
    lines = VERDICTS.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = list(csv.DictReader(lines))
    kept = [line for line, row in zip(lines[1:], rows) if row["notebook"] != notebook]
    VERDICTS.write_text("".join(lines[:1] + kept), encoding="utf-8")


def machine():
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy"))
    place = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    return f"{place}, Python {platform.python_version()}, {packages}"


def interval(row):
    if row["verdict"] == "exact":
        return f"{row['effect']}"
    return f"{row['effect']} [{row['low']}, {row['high']}]"


def claimed(row):
    if row["direction"] == "within":
        return f"within ±{row['margin']}"
    return f"{'<' if row['direction'] == 'less' else '>'} {row['margin']}" if row["direction"] else ""


def verdict_tables():
    """Returns the README's verdicts: for each chapter a line that counts them, and all of them folded beneath."""
    with open(VERDICTS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = []
    for notebook, group in groupby(rows, key=lambda row: row["notebook"]):
        group = list(group)
        counts = Counter(row["verdict"] for row in group)
        summary = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
        title = notebook[3:].replace("_", " ")
        parts.append(f"<details><summary><b>{notebook[:2]} {title}</b>: {summary}</summary>\n")
        parts.append("| claim | verdict | effect and interval | unit | claimed | pairs |\n|---|---|---|---|---|---|")
        for row in group:
            cells = row["claim"], f"**{row['verdict']}**", interval(row), row["unit"], claimed(row), row["seeds"]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("\n</details>\n")
    return "\n".join(parts)


def write_readme(measured_on=None):
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    old = re.search(r"<!-- verdicts -->\n(.*)<!-- end of verdicts -->", text, re.DOTALL).group(1)
    measured_on = measured_on or re.search(r"Measured on .*|$", old).group()
    new = f"{measured_on}\n\n{verdict_tables()}" if measured_on else verdict_tables()
    path.write_text(text.replace(f"<!-- verdicts -->\n{old}", f"<!-- verdicts -->\n{new}"), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them unless given")
    parser.add_argument("--readme", action="store_true", help="execute nothing")
    arguments = parser.parse_args()
    if arguments.readme:
        write_readme()
        return 0
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.pop("NNOPT_FIGURES", None)
    every = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))
    total = 0.0
    for path in arguments.notebooks or every:
        seconds = execute(path.resolve())
        total += seconds
        print(f"{path.resolve().relative_to(ROOT)}: {seconds:.0f} s", flush=True)
    print(f"together {total / 60:.1f} min, on {machine()}")
    if not arguments.notebooks:
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
        write_readme(f"Measured on {machine()}, at commit {commit.strip()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
