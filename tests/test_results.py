"""From rows to one word a statement."""

import pytest

from nnopt.lab.results import ARTICLE, figures_folder, read, statements


def row(claim="LR-1", word="supported", role="primary", p=1e-9, marks="", plan="abc"):
    return {"chapter": "07_x", "claim": claim, "role": role, "word": word, "marks": marks, "p": str(p), "plan": plan,
            "digest": "d", "scope": "digits", "blocks": "10"}  # fmt: skip


def line(rows, identity="LR-1", **options):
    return {one["id"]: one for one in statements(rows, **options)}[identity]


def test_there_are_41_statements_with_ids_of_their_own():
    assert len({line["id"] for line in read(ARTICLE)}) == len(statements([])) == 41


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["supported", "supported"], "holds"), (["exact"], "holds"), (["refuted", "refuted"], "fails"),
        (["supported", "refuted"], "depends"), (["supported", "depends on the grid"], "depends"),
        (["supported", "inconclusive"], "holds in part"), (["supported", "negligible"], "holds in part"),
        (["refuted", "inconclusive"], "fails in part"), (["negligible", "negligible"], "makes no difference here"),
        (["negligible", "inconclusive"], "open"), (["not testable here"], "open"), ([], "not measured yet"),
    ],
)  # fmt: skip
def test_the_rows_of_a_statement_become_one_word(words, word):
    rows = [row(f"LR-1 {number}", one) for number, one in enumerate(words)]
    assert line(rows)["word"] == word


def test_secondary_rows_and_rows_without_a_plan_do_not_vote():
    rows = [row(), row("LR-1 other", "refuted", role="secondary"), row("LR-1 later", "refuted", plan="")]
    assert line(rows)["word"] == "holds"


def test_a_row_that_the_second_run_turns_round_votes_no_more():
    rows, second = [row(), row("LR-1 test", "refuted")], [row("LR-1 test", "supported")]
    found = line(rows, second=second)
    assert (found["word"], found["marks"]) == ("holds", "LR-1 test does not replicate")
    assert line(rows[1:], second=second)["word"] == "open"


def test_a_row_with_another_word_in_the_second_run_is_marked():
    found = line([row()], second=[row(word="inconclusive")])
    assert (found["word"], found["marks"]) == ("holds", "LR-1 inconclusive in a second run")


def test_holms_procedure_runs_across_the_statements():
    rows = [row("LR-1", p=0.004), row("LR-2", p=0.0049), row("LR-3", p=1e-6), row("BN-1 a", p=0.2), row("BN-1 b", p=0)]
    marks = {one["id"]: one["marks"] for one in statements(rows)}
    # sorted p: 1e-6 <= 0.01 / 4, 0.004 > 0.01 / 3: from there on none passes; a statement's p is its rows' largest
    assert marks["LR-3"] == ""
    assert marks["LR-1"] == marks["LR-2"] == marks["BN-1"] == "not after Holm"


def test_figures_go_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("NNOPT_FIGURES", str(tmp_path / "new"))
    assert figures_folder() == tmp_path / "new"
