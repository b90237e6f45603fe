"""Counts the package's lines of code, without docstrings, comments and blank lines, against the limits of its design.

    python .ci/sizes.py

Prints a line for every file and group, and exits with 1 where a limit is passed.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "nnopt"
LONGEST = 350
# The first group has a file whose path begins so; the core is what people take home, from schedules to explain.
GROUPS = {
    "lab": (("lab/",), 1300),
    "data": (("data/",), 1010),
    "recipes, two case studies": (("recipes/",), 1200),
    "command line and what the core stands on": (("_", "checks.py"), 590),
    "core": (("",), 2800),
}
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source):
    """Returns how many lines of `source` hold code; a bare string is a docstring and no code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def counted(package=PACKAGE):
    """Returns the lines of code of each module, by its path in the package."""
    return {path.relative_to(package).as_posix(): code_lines(path.read_text("utf-8"))
            for path in sorted(package.rglob("*.py"))}  # fmt: skip


def group_of(module):
    return next(name for name, (starts, _) in GROUPS.items() if module.startswith(starts))


def too_long(counts):
    """Returns a sentence for each limit that is passed."""
    found = [
        f"{name} has {lines} lines of code, more than {LONGEST}" for name, lines in counts.items() if lines > LONGEST
    ]
    for group, (_, limit) in GROUPS.items():
        total = sum(lines for name, lines in counts.items() if group_of(name) == group)
        if total >= limit:
            found.append(f"{group} has {total} lines of code, not fewer than {limit}")
    return found


def main():
    counts = counted()
    for group, (_, limit) in GROUPS.items():
        own = {name: lines for name, lines in counts.items() if group_of(name) == group}
        print(f"{group}: {sum(own.values()):,} lines of code, limit {limit:,}")
        for name, lines in own.items():
            print(f"  {lines:4} {name}")
    sentences = too_long(counts)
    print(*sentences, sep="\n")
    return bool(sentences)


if __name__ == "__main__":
    sys.exit(main())
