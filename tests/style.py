"""How densely Python files read: figures of their syntax trees and tokens."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 40
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COUNTED_TOKENS = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
CONVENTIONAL_NAMES = {"self", "cls", "_"}
# Names that say nothing of what they hold.
# fmt: off
VAGUE_NAMES = frozenset([
    "found", "part", "parts", "of", "what", "one", "other", "others", "mine", "here", "there",
    "place", "places", "known", "made", "said", "asked", "way", "ways", "both", "own", "every",
    "everyone", "more", "rest", "wrong", "bad", "good", "left", "shown", "done", "held", "used",
    "many", "some", "kept", "gone", "full", "whole", "able", "told", "begun", "around", "again",
    "where", "how", "side", "sides",
])
# fmt: on


@dataclass
class Counts:
    """What is counted in source files.

    Attributes:
        lines: All lines.
        code_lines: Lines that are neither blank, nor comments, nor of docstrings.
        long_lines: Code lines of more than 100 columns.
        tokens: Names, operators and numbers.
        comprehensions: Comprehensions and generator expressions.
        conditionals: Conditional expressions.
        functions: Functions and methods.
        long_functions: Those of more than 40 lines.
        names: Names that are bound: variables and parameters.
        vague_names: Those that are among :data:`VAGUE_NAMES`.
        letters: Letters of all names that are bound.
    """

    lines: int = 0
    code_lines: int = 0
    long_lines: int = 0
    tokens: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    functions: int = 0
    long_functions: int = 0
    names: int = 0
    vague_names: int = 0
    letters: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add the counts of other files."""
        sums = Counts()
        for field in fields(Counts):
            sums_of_field = getattr(self, field.name) + getattr(other, field.name)
            setattr(sums, field.name, sums_of_field)
        return sums


@dataclass(frozen=True)
class Style:
    """How a room reads.

    Attributes:
        tokens: Per code line.
        comprehensions: Per 1,000 code lines.
        conditionals: Conditional expressions per 1,000 code lines.
        long_lines: Code lines of more than 100 columns.
        vague_names: In percent of the names that are bound.
        name_length: Letters of a name that is bound, on average.
        long_functions: Functions of more than 40 lines, in percent.
    """

    tokens: float
    comprehensions: float
    conditionals: float
    long_lines: int
    vague_names: float
    name_length: float
    long_functions: float


def style_of(counts: Counts) -> Style:
    """Compute the figures of a room from its counts."""
    code_lines = max(counts.code_lines, 1)
    names = max(counts.names, 1)
    return Style(
        tokens=counts.tokens / code_lines,
        comprehensions=1000 * counts.comprehensions / code_lines,
        conditionals=1000 * counts.conditionals / code_lines,
        long_lines=counts.long_lines,
        vague_names=100 * counts.vague_names / names,
        name_length=counts.letters / names,
        long_functions=100 * counts.long_functions / max(counts.functions, 1),
    )


def count_files(paths: Iterable[Path]) -> Counts:
    """Count what several files hold together."""
    counts = Counts()
    for path in paths:
        counts += count(path.read_text(encoding="utf-8"))
    return counts


def count(source: str) -> Counts:
    """Count what a source text holds."""
    tree = ast.parse(source)
    names = bound_names(tree)
    counts = Counts(
        lines=len(source.splitlines()),
        tokens=_count_tokens(source),
        names=names.total(),
        vague_names=sum(names[name] for name in VAGUE_NAMES),
        letters=sum(len(name) * number for name, number in names.items()),
    )
    for line in _code_lines(source, tree):
        counts.code_lines += 1
        counts.long_lines += len(line.rstrip()) > MAX_COLUMNS
    for node in ast.walk(tree):
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.conditionals += isinstance(node, ast.IfExp)
        if isinstance(node, FUNCTIONS):
            counts.functions += 1
            counts.long_functions += _n_lines(node) > MAX_FUNCTION_LINES
    return counts


def bound_names(tree: ast.AST) -> Counter[str]:
    """Count how often each name is bound, as a variable or a parameter."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] += 1
        elif isinstance(node, ast.arg):
            names[node.arg] += 1
    for name in CONVENTIONAL_NAMES:
        names.pop(name, None)
    return names


def _count_tokens(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type in COUNTED_TOKENS for token in tokens)


def _code_lines(source: str, tree: ast.AST) -> Iterator[str]:
    docstring_lines = _docstring_lines(tree)
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#") and number not in docstring_lines:
            yield line


def _docstring_lines(tree: ast.AST) -> set[int]:
    numbers: set[int] = set()
    for node in ast.walk(tree):
        documentable = isinstance(node, ast.Module | ast.ClassDef | FUNCTIONS[0] | FUNCTIONS[1])
        if documentable and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            numbers.update(range(docstring.lineno, docstring.end_lineno + 1))
    return numbers


def _n_lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1
