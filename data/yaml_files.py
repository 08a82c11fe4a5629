"""YAML from files and options, with errors of one class.

PyYAML raises exceptions of many classes on damaged input (such as ``KeyError`` on ``!!bool foo``).
Here all of them become :class:`cusa.data.errors.FileFormatError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cusa.data.errors import FileFormatError
from cusa.data.parsing import read_text

# Settings files have a few hundred nodes; aliases of aliases could multiply them without limit.
MAX_YAML_NODES = 10_000
_YAML_ERRORS = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
)


def read_yaml(file_path: Path) -> Any:
    """Read a YAML file.

    Raises:
        FileFormatError: If it cannot be read or parsed; see :func:`parse_yaml`.
    """
    return parse_yaml(read_text(file_path), str(file_path), file_path)


def parse_yaml(text: str, source: str, file_path: Path | None = None) -> Any:
    """Parse one YAML document of plain values.

    Args:
        text: The text.
        source: Name of the text in messages: a path, or an option with its value.
        file_path: The file that it comes from, if any.

    Returns:
        Plain Python values; ``None`` for an empty document.

    Raises:
        FileFormatError: If the text is not YAML, a value does not fit its tag, it nests too deeply,
            or its aliases expand to more than :data:`MAX_YAML_NODES` values.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _refuse_expansion(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except RecursionError:
        problem = "it nests too deeply"
    except _YAML_ERRORS as error:
        problem = " ".join(str(error).split()) or type(error).__name__
    message = f"{source} is not valid YAML ({problem}); correct it"
    raise FileFormatError(message, path=file_path) from None


def _refuse_expansion(root: yaml.Node) -> None:
    """Refuse a document whose aliases expand to too many values, or contain themselves."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise ValueError("an alias contains itself")
        if key not in sizes:
            open_nodes.add(key)
            total = 1
            for child in _children(node):
                total += size(child)
            open_nodes.remove(key)
            sizes[key] = total
        return sizes[key]

    if size(root) > MAX_YAML_NODES:
        raise ValueError(f"its aliases expand to more than {MAX_YAML_NODES:,} values")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
