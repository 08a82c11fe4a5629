"""Pickles read without trust: few instructions and names, time and memory by the file's size.

Python's own unpickler believes the file: an index of its memo makes it allocate as many entries, a
key may be a tuple whose hash takes for ever, and the built objects may be nested more deeply than
the interpreter's stack. Here an interpreter of our own takes the instructions one by one, knows
only those that plain data needs, and calls only the functions that it is given.
"""

from __future__ import annotations

import pickle
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cusa.data.errors import first_line

# Containers within containers.
_MAX_MARKS = 64
# Of a file, at least, to each list, tuple or dictionary in it.
_CONTAINER_BYTES = 8
# Instructions and containers that a file of any size may have.
_SPARE = 1000
# Bytes of the instruction that begins a frame.
_FRAME_BYTES = 9
# Characters of a name in a message.
_MAX_SHOWN = 100
# Instructions that push their argument.
_PUSHED = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Stream(Protocol):
    """The source of a pickle: a binary file, or one mapped into memory."""

    def read(self, n_bytes: int, /) -> bytes:
        """Read up to ``n_bytes`` bytes."""
        ...

    def readline(self) -> bytes:
        """Read up to the end of the line."""
        ...

    def tell(self) -> int:
        """Return the position in the source."""
        ...


class Effort:
    """The effort that reading may still cost, shared by a pickle and those within it.

    Args:
        n_bytes: Size of the file: each of its bytes pays for one instruction, or for one byte that
            is copied.
    """

    def __init__(self, n_bytes: int) -> None:
        self._steps = 2 * n_bytes + _SPARE
        self._containers = n_bytes // _CONTAINER_BYTES + _SPARE

    def spend(self, steps: int) -> None:
        """Pay for instructions or bytes.

        Raises:
            UnpicklingError: If the file is too small for them.
        """
        self._steps -= steps
        if self._steps < 0:
            raise pickle.UnpicklingError("it takes more steps than a file of its size should")

    def contain(self) -> None:
        """Pay for a list, tuple or dictionary.

        Raises:
            UnpicklingError: As :meth:`spend`.
        """
        self._containers -= 1
        if self._containers < 0:
            raise pickle.UnpicklingError("it holds more containers than a file of its size should")


class StandIn(ABC):
    """A stand-in for an object that a pickle builds: keeps the state that the file gives it."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Take the object's state."""


def read_pickle(
    stream: Stream,
    effort: Effort,
    names: Mapping[tuple[str, str], Callable[..., Any]],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle; the stream stands behind it afterwards.

    Args:
        stream: Where it begins.
        effort: What it may cost.
        names: What it may name, by module and name, and what is called in its place.
        persistent: Returns the object that a persistent id stands for; ``None``: there are none.

    Returns:
        Numbers, texts, bytes, tuples, lists, dictionaries with keys of text or numbers, and
        results of the functions in ``names``.

    Raises:
        UnpicklingError: If it is damaged, names or holds anything else, or costs too much.
    """
    machine = _Machine(effort, names, persistent)
    try:
        frame_end: int | None = None
        # The stub of genops asks for a file.
        for opcode, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
            effort.spend(1)
            assert position is not None, "streams know where they are"
            frame_end = _checked_frame(frame_end, opcode.name, argument, position)
            machine.step(opcode.name, argument)
        return machine.result()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # of the damaged bytes, or of what was called with them
        raise pickle.UnpicklingError(f"{type(error).__name__}: {first_line(error)}") from None


def _checked_frame(
    frame_end: int | None,
    name: str,
    argument: Any,
    position: int,
) -> int | None:
    """Return where the frame of the instruction at a position ends, ``None`` if it is in none.

    Bytes that were lost or added within a frame show at its end, also where all of its
    instructions still make sense.

    Raises:
        UnpicklingError: If the frame before does not end where an instruction does.
    """
    crosses_end = frame_end is not None and position > frame_end
    ends_early = name == "STOP" and frame_end not in (None, position + 1)
    if crosses_end or ends_early:
        raise pickle.UnpicklingError(
            "a frame has another length than it says; bytes are missing or too many"
        )
    if name == "FRAME":
        return position + _FRAME_BYTES + int(argument)
    if position == frame_end:
        return None
    return frame_end


class _Machine:
    """The stack and the memo of an unpickler, and its instructions."""

    def __init__(
        self,
        effort: Effort,
        names: Mapping[tuple[str, str], Callable[..., Any]],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self._effort = effort
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """Return the object that the pickle stands for."""
        [value] = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._push_container(tuple(self._pop(_TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            instruction = _INSTRUCTIONS.get(name)
            if instruction is None:
                raise pickle.UnpicklingError(f"the instruction {name} is none of plain data")
            instruction(self, argument)

    def _pop(self, n_values: int) -> list[Any]:
        """Take values off the stack, in the order in which they were pushed."""
        bottom = 0
        if self._marks:
            bottom = self._marks[-1]
        start = len(self._stack) - n_values
        if start < bottom:
            raise pickle.UnpicklingError("its stack is empty")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push_container(self, container: Any) -> None:
        self._effort.contain()
        self._stack.append(container)

    def _mark(self, _: Any) -> None:
        if len(self._marks) == _MAX_MARKS:
            raise pickle.UnpicklingError("it nests too deeply")
        self._marks.append(len(self._stack))

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self, _: Any) -> None:
        self._push_container(tuple(self._pop_to_mark()))

    def _empty_list(self, _: Any) -> None:
        self._push_container([])

    def _append(self, _: Any) -> None:
        self._extend(self._pop(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise pickle.UnpicklingError("it appends to what is no list")
        self._stack[-1].extend(values)

    def _empty_dict(self, _: Any) -> None:
        self._push_container({})

    def _set_item(self, _: Any) -> None:
        self._update(self._pop(2))

    def _set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, pairs: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise pickle.UnpicklingError("it gives items to what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # The hash of a tuple of tuples may take for ever.
            if not isinstance(key, (str, int)):
                kind = type(key).__name__
                raise pickle.UnpicklingError(f"a key is a {kind}, not a text or a number")
            self._stack[-1][key] = value

    def _global(self, argument: Any) -> None:
        self._push_name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        self._push_name(*self._pop(2))

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("a name in it is no text")
        module = module.replace("numpy.core.", "numpy._core.")  # where numpy 1 had it
        if (module, name) not in self._names:
            full_name = f"{module}.{name}"[:_MAX_SHOWN]
            raise pickle.UnpicklingError(f"{full_name} is neither a numpy array nor a torch tensor")
        self._stack.append(self._names[module, name])

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        is_legal = any(function is legal for legal in self._names.values())
        if not is_legal or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        self._push_container(function(*arguments))

    def _build(self, _: Any) -> None:
        [state] = self._pop(1)
        if not isinstance(self._stack[-1], StandIn):
            raise pickle.UnpicklingError("it gives a state to what has none")
        self._stack[-1].set_state(state)

    def _persistent_id(self, _: Any) -> None:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        self._push_container(self._persistent(*self._pop(1)))


_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "MEMOIZE": _Machine._memoize,
    "TUPLE": _Machine._tuple,
    "EMPTY_LIST": _Machine._empty_list,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "EMPTY_DICT": _Machine._empty_dict,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
