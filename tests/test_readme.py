"""What the README shows runs, and what it links to exists."""

import re
from pathlib import Path

import keras
import pytest
from notebook_cells import load_book

from nnopt.lab import results

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(mark, language):
    return re.search(rf"{mark}\n```{language}\n(.*?)\n```", TEXT, re.DOTALL).group(1)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="a sweep takes minutes there, run after run")
def test_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    for code in blocks:
        exec(code, names)
    rate, verdict = capsys.readouterr().out.splitlines()
    assert 1e-4 < float(rate) < 10
    assert verdict.startswith("0.01 beats 0.001 after 3 epochs ")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_link_of_the_readme_exists(target):
    assert target.startswith("https://") or (README.parent / target).exists()


def test_the_commands_differ_only_in_their_last_step():
    commands = [block(f"<!-- command: {name} -->", "bash") for name in ("open", "execute", "test")]
    setups = {command.rpartition(" && ")[0] for command in commands}
    assert setups == {"python3 -m venv .venv && source .venv/bin/activate && pip install -r requirements.txt"}
    assert [command.rpartition(" && ")[2].split()[:2] for command in commands] == [
        ["jupyter", "lab"],
        ["jupyter", "nbconvert"],
        ["pytest", "-n"],
    ]


def test_the_verdicts_of_the_readme_are_those_of_the_ledger():
    rows = results.recorded()
    lines = results.read(README.parent / "figures" / "results" / "statements.csv")
    assert load_book().tables(rows, lines) in TEXT
