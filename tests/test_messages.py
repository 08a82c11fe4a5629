"""Every message of the library, read where it is raised."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import cusa
from cusa.data import errors

ROOT = Path(cusa.__file__).parent.parent
ROOMS = ("cusa", "data", "precompute", "train", "eval")
# A sentence's first word; names of other letters, such as CSA and NaN, are no such words.
CAPITALIZED = re.compile(r"(?!Unicom\b)[A-Z][a-z]+\b")


def _trees():
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def _kinds(trees):
    """The names of CusaError and of the classes below it, in any room."""
    kinds = {"CusaError"}
    bases = {}
    for _, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base) for base in node.bases}
    # A class may stand before the one that it is below.
    for _ in bases:
        kinds |= {name for name, above in bases.items() if above & kinds}
    return kinds


def _literals(node):
    """The texts that an expression may be, with ``{}`` for what is filled in."""
    if isinstance(node, ast.Constant):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        texts = [value.value if isinstance(value, ast.Constant) else "{}" for value in node.values]
        yield "".join(texts)
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body)
        yield from _literals(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _literals(value)


def _messages():
    """Yield where each message is raised, the kind of error, and its text."""
    trees = list(_trees())
    kinds = _kinds(trees)
    for path, tree in trees:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            assigned = defaultdict(list)
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assigned[node.targets[0].id] += _literals(node.value)
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) not in kinds:
                    continue
                message = node.args[0]
                texts = list(_literals(message))
                if isinstance(message, ast.Name):
                    texts = assigned[message.id]
                for text in texts:
                    yield f"{path}:{node.lineno}", ast.unparse(node.func), text


MESSAGES = list(_messages())


def test_every_message_has_the_form_of_the_house():
    """One line; a sentence without a capital or a full stop, as it stands behind ``Error: ``."""
    assert len(MESSAGES) > 400
    for place, _, text in MESSAGES:
        assert text.isprintable(), place
        assert text == text.strip(), place
        assert "  " not in text, place
        assert not text.endswith((".", "!", ";", ",")), f"{place}: {text}"
        assert not CAPITALIZED.match(text), f"{place}: {text}"
        # What is filled in may be another's message.
        assert "{}" in text or len(text.split()) > 2, f"{place}: {text}"


def test_every_error_is_of_a_kind():
    """CusaError itself says nothing of what is at fault."""
    raised = {kind for _, kind, _ in MESSAGES}
    kinds = {name for name in vars(errors) if name.endswith("Error")}
    assert kinds - raised == {"CusaError"}
