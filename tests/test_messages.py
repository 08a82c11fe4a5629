"""Every message of the library, read where it is raised."""

import ast
import re
import textwrap
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
    for path, tree in TREES:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            assigned = defaultdict(list)
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assigned[node.targets[0].id] += _literals(node.value)
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) not in KINDS:
                    continue
                message = node.args[0]
                texts = list(_literals(message))
                if isinstance(message, ast.Name):
                    texts = assigned[message.id]
                for text in texts:
                    yield f"{path}:{node.lineno}", ast.unparse(node.func), text


TREES = list(_trees())
KINDS = _kinds(TREES)
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


def test_errors_name_settings_as_python_spells_them():
    """``batch_size`` or ``train.batch_size``, and not ``--batch-size``."""
    names = {}
    for path, tree in TREES:
        for node in ast.walk(tree):
            if _is_call(node, *KINDS):
                for keyword in node.keywords:
                    if keyword.arg == "name":
                        place = f"{path}:{node.lineno}"
                        names |= dict.fromkeys(_literals(keyword.value), place)
    assert len(names) > 40
    flags = {name: place for name, place in names.items() if "-" in name}
    assert not flags


# Tests that ask for words, and why.
WORDED = {
    "precompute/test_precompute.py": (3, "the system's refusal, and the picture of a run's error"),
    "precompute/test_teachers.py": (1, "the names that are legal are listed"),
    "precompute/test_unicom.py": (2, "where the weights are to be had, and under which checksum"),
    "precompute/test_vision.py": (1, "the line that installs what is missing"),
    "train/test_resume.py": (2, "the command to go on with"),
    "train/test_config.py": (8, "ranges and choices that are legal are told"),
}


def _is_call(node, *names):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def _count_wordings(tree, kinds):
    """Count what asks an error for its words: ``match=``, and ``in`` its text or its line."""
    line_sources = {"run_error"}
    lines = set()
    # A function may hand on what another returns.
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for statement in ast.walk(node):
                if isinstance(statement, ast.Return) and _is_call(
                    statement.value, "run_error", "str"
                ):
                    line_sources.add(node.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_call(node.value, *line_sources):
            lines.add(ast.unparse(node.targets[0]))
    n_wordings = 0
    for node in ast.walk(tree):
        if _is_call(node, "pytest.raises"):
            has_match = any(keyword.arg == "match" for keyword in node.keywords)
            n_wordings += has_match and ast.unparse(node.args[0]) in kinds
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            asked = node.comparators[0]
            is_text = _is_call(asked, "str", *line_sources) or ast.unparse(asked) in lines
            # That it is one line is no question of words.
            n_wordings += is_text and ast.unparse(node.left) != repr("\n")
    return n_wordings


def test_tests_ask_for_the_kind_of_an_error_and_its_fields():
    wordings = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        n_wordings = _count_wordings(ast.parse(path.read_text(encoding="utf-8")), KINDS)
        if n_wordings:
            wordings[path.relative_to(ROOT / "tests").as_posix()] = n_wordings
    assert wordings == {name: number for name, (number, _) in WORDED.items()}


def test_which_questions_are_of_words():
    source = """
        def line():
            return run_error("train")

        with pytest.raises(StoreError, match="words") as error:
            pass
        with pytest.raises(ValueError, match="words of no error of ours"):
            pass
        assert "words" in str(error.value)
        assert "\\n" not in str(error.value)
        assert "words" in run_error("train")
        text = line()
        assert "words" in text
        assert "words" in run_ok("train")
    """
    tree = ast.parse(textwrap.dedent(source))
    assert _count_wordings(tree, {"CusaError", "StoreError"}) == 4
