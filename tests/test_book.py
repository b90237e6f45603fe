"""The book's run: what it refuses, what it keeps, what it calls an opposite word."""

import json
import subprocess

import nbformat
import pytest
from notebook_cells import load_book

from nnopt.lab import results

book = load_book()


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A chapter with a committed plan cell, in a repository of its own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "RESULTS", tmp_path / "figures" / "results")
    monkeypatch.setattr(book, "DONE", tmp_path / ".book")
    path = folder / "42_a_chapter.ipynb"
    write(path, "PLAN = 1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "a plan"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return path


def write(path, plan, code="print(1)"):
    cells = [nbformat.v4.new_code_cell(plan, metadata={"tags": ["plan"]}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def row(claim, word, chapter="42_a_chapter"):
    return {**dict.fromkeys(results.VERDICTS, ""), "chapter": chapter, "claim": claim, "word": word, "plan": "abc"}


def test_a_full_run_is_refused_where_the_plan_is_not_the_committed_one(chapter):
    assert book.plan_of(chapter) == "PLAN = 1"
    write(chapter, "PLAN = 1", code="print(2)")
    assert book.plan_of(chapter) == "PLAN = 1"
    write(chapter, "PLAN = 2")
    with pytest.raises(SystemExit, match="commit the plan cell"):
        book.plan_of(chapter)


def test_a_chapter_without_a_plan_has_none(chapter):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), chapter)
    assert book.plan_of(chapter) == ""


def test_what_is_done_is_skipped_until_its_code_changes(chapter, monkeypatch, capsys):
    ran = []

    def run_one(path, environment):
        ran.append(path.stem)
        mark = book.DONE / path.parent.name / path.stem
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(book.fingerprint(path))
        return True

    monkeypatch.setattr(book, "run_one", run_one)
    assert book.run_all([chapter], False, {})
    assert book.run_all([chapter], False, {})
    assert "done already" in capsys.readouterr().out
    write(chapter, "PLAN = 1", code="print(2)")
    assert book.run_all([chapter], False, {})
    assert book.run_all([chapter], True, {})
    assert len(ran) == 3


def test_a_chapter_that_loses_a_planned_row_is_not_taken_into_the_ledger(chapter, tmp_path):
    results.replace_chapter(book.RESULTS, chapter.stem, [row("LR-1", "refuted"), row("LR-2", "supported")], [])
    results.replace_chapter(tmp_path, chapter.stem, [row("LR-2", "supported")], [])
    with pytest.raises(ValueError, match=r"once planned must stay.*LR-1"):
        book.take(chapter.stem, tmp_path, book.RESULTS, store=True)
    assert len(results.recorded(book.RESULTS)) == 2


def test_an_opposite_word_fails_and_any_other_is_only_printed(chapter, capsys):
    results.replace_chapter(book.RESULTS, chapter.stem, [row("LR-1", "refuted"), row("LR-2", "supported")], [])
    assert book.compare_rows(chapter.stem, [row("LR-1", "inconclusive"), row("LR-2", "supported")])
    assert "differs: LR-1" in capsys.readouterr().out
    assert not book.compare_rows(chapter.stem, [row("LR-1", "supported"), row("LR-2", "supported")])
    assert "1 of 2 words kept, 1 turned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (nbformat.v4.new_output("stream", name="stderr", text="oh"), "warnings"),
        (nbformat.v4.new_output("stream", text=f"{book.ROOT}/x"), "a path"),
        (nbformat.v4.new_output("execute_result", data={"text/plain": "<Axes: >"}), "an object"),
    ],
)
def test_what_no_reader_should_see_is_not_stored(chapter, output, message):
    notebook = nbformat.read(chapter, 4)
    notebook.cells[0].outputs = [output]
    book_root = load_book()
    with pytest.raises(SystemExit, match=message):
        book_root.check(chapter, notebook)


def test_what_is_not_stored_can_still_be_read(chapter, tmp_path, monkeypatch):
    notebook = nbformat.read(chapter, 4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stderr", text="oh")]
    before = chapter.read_bytes()
    monkeypatch.setattr(book, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="refused"), book.kept_if_refused(chapter, notebook):
        book.check(chapter, notebook)
    (kept,) = (tmp_path / ".book" / "refused").iterdir()
    assert nbformat.read(kept, 4).cells[0].outputs[0]["text"] == "oh"
    assert chapter.read_bytes() == before


def test_the_ledger_in_the_repository_fits_the_plans_that_stand():
    for path in (results.book_folder() / "notebooks").glob("*.ipynb"):
        source = book.plan.plan_source(json.loads(path.read_text(encoding="utf-8")))
        rows = [row for row in results.recorded() if row["chapter"] == path.stem]
        assert bool(source) == bool(rows), path.stem
        assert all(row["digest"] == book.plan.digest_of(source) for row in rows), path.stem
