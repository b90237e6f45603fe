"""What the book found, as files: verdicts.csv, pairs.csv and statements.csv in figures/results/."""

import csv
import io
import os
import re
from pathlib import Path

VERDICTS = (
    "chapter", "claim", "role", "word", "marks", "effect", "low", "high", "corrected_low", "corrected_high", "p",
    "unit", "scale", "direction", "margin", "matters", "blocks", "seeds", "failed_treatment", "failed_control",
    "halves", "needed", "note", "statement", "scope", "plan", "digest", "line",
)  # fmt: skip
PAIRS = ("chapter", "claim", "block", "seed", "treatment", "control")
ARTICLE = Path(__file__).with_name("article.csv")  # the 41 statements of the article, in our words
COLUMNS = ("id", "section", "statement", "notebook", "word", "p", "marks", "rows", "scope")
LEVEL = 0.01  # of Holm's procedure across the statements


def book_folder():
    """Returns the repository's folder: the one around the working directory, or the one nnopt is installed from.

    Raises:
        FileNotFoundError: There is none, as with nnopt installed as a plain package elsewhere.
    """
    for place in [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]]:
        if (place / "notebooks").is_dir() and (place / "nnopt" / "lab").is_dir():
            return place
    raise FileNotFoundError(
        "No repository of nnopt around the working directory: set the environment variables NNOPT_FIGURES and "
        f"NNOPT_RESULTS to the folders for figures and results. Received: {Path.cwd()}"
    )


def figures_folder():
    """Returns the folder for figures: NNOPT_FIGURES if set, else figures/ of the repository."""
    return Path(os.environ.get("NNOPT_FIGURES") or book_folder() / "figures").expanduser().absolute()


def book_results():
    """Returns the folder of what the book found."""
    return book_folder() / "figures" / "results"


def recorded(folder=None):
    """Returns the rows of verdicts.csv as dicts of strings; those that the book recorded unless `folder` is given."""
    try:
        return read(Path(folder or book_results()) / "verdicts.csv")
    except FileNotFoundError:
        return []


def read(path):
    """Returns the rows of a CSV file as dicts of strings; of a missing file none."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, columns, rows):
    """Writes rows, dicts, as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode("utf-8"))


def write_whole(path, data):
    """Writes bytes under another name and renames, so that the old file or the new one is whole; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def replace_chapter(folder, chapter, verdicts, pairs):
    """Puts a chapter's rows in the place of all rows that it had before; rows of other chapters stay.

    Raises:
        ValueError: A row that an earlier plan recorded is missing.
    """
    before = {row["claim"] for row in recorded(folder) if row["chapter"] == chapter and row["plan"]}
    if gone := sorted(before - {row["claim"] for row in verdicts}):
        raise ValueError(f"A row once planned must stay, whatever it says. Received: a plan without {', '.join(gone)}")
    for name, columns, rows in (("verdicts.csv", VERDICTS, verdicts), ("pairs.csv", PAIRS, pairs)):
        path = Path(folder) / name
        kept = [row for row in read(path) if row["chapter"] != chapter]
        write(path, columns, sorted([*kept, *rows], key=_order))


def row_of(verdict, plan):
    """Returns a `Verdict` of a `Plan` as a row of verdicts.csv, its numbers rounded to five digits."""
    claim, corrected = verdict.claim, verdict.corrected or (None, None)
    row = {
        **vars(claim), **vars(verdict), "claim": claim.name, "marks": "; ".join(verdict.marks),
        "chapter": plan.chapter, "plan": plan.commit, "digest": plan.digest, "scope": plan.scope,
        "halves": "; ".join(verdict.halves), "corrected_low": corrected[0], "corrected_high": corrected[1],
        "blocks": len(verdict.values), "failed_treatment": verdict.failed[0], "failed_control": verdict.failed[1],
        "needed": verdict.needed, "line": str(verdict),
    }  # fmt: skip
    return {name: _text(row[name]) for name in VERDICTS}


def pairs_of(chapter, claim, treatment, control):
    """Returns the raw pairs, arrays (blocks, seeds), as rows of pairs.csv."""
    return [
        {"chapter": chapter, "claim": claim, "block": str(block), "seed": str(seed),
         "treatment": _text(one, 7), "control": _text(other, 7)}
        for block, (ones, others) in enumerate(zip(treatment, control))
        for seed, (one, other) in enumerate(zip(ones, others))
    ]  # fmt: skip


def statements(rows, second=(), digests=None):
    """Returns one line for each of the article's 41 statements, decided by its primary rows.

    All supported (or exact): "holds". All refuted: "fails". Both, or one that depends on the grid: "depends". Supported
    beside undecided: "holds in part"; refuted beside undecided: "fails in part". All negligible: "makes no difference
    here". Else "open". Without a primary row it reads "not measured yet".

    Args:
        rows: Rows of verdicts.csv.
        second: Rows of second runs: one that turns into its opposite in any of them votes no more, one with another
            word is marked.
        digests: Dict chapter -> digest of its plan cell now. Rows from another plan are exploratory: they do not vote.

    Returns:
        List of dicts with the keys of `COLUMNS`. The p of a statement is the largest of its votes'; those that
        Holm's procedure at 1 % across all statements leaves are marked "not after Holm".

    Example:

    >>> row = {"chapter": "07_x", "claim": "LR-1", "role": "primary", "word": "refuted", "marks": "", "p": "1e-5",
    ...        "plan": "abc", "digest": "1", "scope": "digits", "blocks": "10"}
    >>> {line["id"]: line["word"] for line in statements([row])}["LR-1"]
    'fails'
    """
    lines = []
    for statement in read(ARTICLE):
        identity, votes, marks = statement["id"], [], []
        for row in rows:
            if statement_of(row["claim"]) != identity or row["role"] != "primary" or not _votes(row, digests):
                continue
            again = {one["word"] for one in second if all(one[key] == row[key] for key in ("chapter", "claim"))}
            if {"supported", "refuted"} <= {row["word"], *again} and row["word"] in ("supported", "refuted"):
                marks.append(f"{row['claim']} does not replicate")
                continue
            marks += [f"{row['claim']} {other} in a second run" for other in sorted(again - {row["word"]})]
            marks += [f"{row['claim']} {mark}" for mark in row["marks"].split("; ") if mark]
            votes.append(row)
        p = max((float(row["p"]) for row in votes if row["p"] not in ("", "nan")), default=None)
        names = ", ".join(f"{row['claim']} {row['word']}" for row in votes)
        blocks = [", {blocks} blocks".format(**row) if row["word"] != "exact" else "" for row in votes]
        scope = "; ".join(dict.fromkeys(row["scope"] + some for row, some in zip(votes, blocks)))
        word = _word_of([row["word"] for row in votes]) if votes else "open" if marks else "not measured yet"
        lines.append({**statement, "word": word, "p": p, "marks": marks, "rows": names, "scope": scope})
    _mark_by_holm([line for line in lines if line["p"] is not None])
    for line in lines:
        line["marks"], line["p"] = "; ".join(line["marks"]), _text(line["p"])
    return lines


def statement_of(claim):
    """Returns the id of the statement that a row belongs to: "LR-1" for "LR-1 test"."""
    return re.split(r"[ ,]", claim, maxsplit=1)[0]


def _votes(row, digests):
    """Whether a row stands in a plan that is still the one it was measured by."""
    return bool(row["plan"]) and (digests is None or digests.get(row["chapter"]) == row["digest"])


def _word_of(words):
    words = {"supported" if word == "exact" else word for word in words if word != "not testable here"}
    if "depends on the grid" in words or {"supported", "refuted"} <= words:
        return "depends"
    if len(words) == 1:
        return {"supported": "holds", "refuted": "fails", "negligible": "makes no difference here"}.get(*words, "open")
    return "holds in part" if "supported" in words else "fails in part" if "refuted" in words else "open"


def _mark_by_holm(lines):
    passed = True
    for rank, line in enumerate(sorted(lines, key=lambda line: line["p"])):
        passed = passed and line["p"] <= LEVEL / (len(lines) - rank)
        if not passed and line["word"] not in ("open", "makes no difference here"):
            line["marks"].append("not after Holm")


def _order(row):
    """Sorts LR-2 before LR-10, and pairs by block and seed."""
    parts = re.split(r"(\d+)", f"{row['chapter']} {row['claim']}")  # text and digits in turn
    natural = [int(part) if part.isdigit() else part for part in parts]
    return natural, int(row.get("block") or 0), int(row.get("seed") or 0)


def _text(value, digits=5):
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
