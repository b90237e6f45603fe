"""What the prose of a chapter says was found is what the ledger says."""

import json
import re
from itertools import groupby

import pytest

from nnopt.lab import results

WORDS = (
    "supported", "refuted", "negligible", "inconclusive", "depends on the grid", "not testable here", "exact",
)  # fmt: skip
ROWS = {chapter: {row["claim"]: row["word"] for row in rows}
        for chapter, rows in groupby(results.recorded(), key=lambda row: row["chapter"])}  # fmt: skip


def named(chapter):
    """Returns the pairs (row, word) that a chapter's prose names as **ROW word**."""
    book = json.loads((results.book_folder() / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    prose = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
    return re.findall(rf"\*\*([A-Z]+-\d[^*\n]*?) ({'|'.join(WORDS)})\*\*", prose)


@pytest.mark.parametrize("chapter", ROWS)
def test_each_word_in_the_prose_is_the_ledgers(chapter):
    found = named(chapter)
    assert found
    assert [(row, word) for row, word in found if ROWS[chapter].get(row) != word] == []


@pytest.mark.parametrize("chapter", ROWS)
def test_each_planned_row_is_named_in_the_prose(chapter):
    assert set(ROWS[chapter]) - {row for row, _ in named(chapter)} == set()
