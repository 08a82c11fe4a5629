"""The pages of documentation: their links lead somewhere, and their Python runs."""

import ast
import configparser
import re
import shlex
from pathlib import Path

import pytest

import cusa
from cusa.cli import evaluate, precompute, store, train

ROOT = Path(cusa.__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _anchors(path):
    """The names that GitHub gives to a page's headings."""
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked_page = (page.parent / name).resolve() if name else page
        assert linked_page.exists(), target
        if anchor:
            assert anchor in _anchors(linked_page), target


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")}
    pages.remove("README.md")
    linked = {target.partition("#")[0] for target in LINK.findall(index)}
    assert pages <= linked


def test_every_dependency_has_its_reason():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    requirements = settings["options"]["install_requires"]
    for extra in settings["options.extras_require"].values():
        requirements += f"\n{extra}"
    packages = set(re.findall(r"^([\w-]+)", requirements, re.MULTILINE)) - {"cusa"}
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").replace("_", "-")
    for package in packages:
        assert package.replace("_", "-") in reasons, package


COMMANDS = {
    "cusa-precompute": precompute.main,
    "cusa-train": train.main,
    "cusa-eval": evaluate.main,
    "cusa-store": store.main,
}
COMMAND_OF_MODULE = {"cusa.precompute": "cusa-precompute", "cusa.train": "cusa-train"}
COMMAND_LINE = re.compile(r"^    (?:torchrun [^\n]*-m )?(cusa[-.]\w+)\b(.*)$", re.MULTILINE)
COMMAND_SPAN = re.compile(r"`(cusa-(?:precompute|train|eval|store)) ([^`]*)`")
# They tell of options that are no more.
HISTORIES = {"CHANGELOG.md", "docs/decisions.md"}


def _command(name, words):
    """The command that a command line runs, and its arguments."""
    main = COMMANDS[COMMAND_OF_MODULE.get(name, name)]
    subcommands = getattr(main, "subcommands", None) or getattr(main, "commands", {})
    if words and words[0] in subcommands:
        return subcommands[words[0]], words[1:]
    return main, words


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_command_lines_can_be_typed_as_they_are(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, line in COMMAND_LINE.findall(text):
        words = shlex.split(line, comments=True)
        command, arguments = _command(name, words)
        is_whole = "…" not in line and "..." not in words
        if is_whole:
            command.make_context(name, arguments)


@pytest.mark.parametrize("page", [p for p in PAGES if _name(p) not in HISTORIES], ids=_name)
def test_options_in_running_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for name, line in COMMAND_SPAN.findall(text):
        command, arguments = _command(name, line.split())
        legal = {option for parameter in command.params for option in parameter.opts}
        legal |= {option for parameter in command.params for option in parameter.secondary_opts}
        for word in arguments:
            if word.startswith("--"):
                assert word in legal | {"--help", "--version"}, f"{name} {line}"


def _texts_of_the_library():
    """The fixed parts of all texts in the library's code."""
    texts = []
    for room in ("cusa", "data", "precompute", "train", "eval"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_troubleshooting_quotes_messages_that_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 30
    library = _texts_of_the_library()
    for message in messages:
        words = message.split()
        runs = [" ".join(words[start : start + 3]) for start in range(len(words) - 2)]
        assert any(run in library for run in runs), message
