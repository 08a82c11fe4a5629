"""Pickles read without trust: few instructions, and few names.

Python's unpickler that is written in Python takes the instructions, and of these only those that
plain data needs. It calls only the functions that it is given. It believes what a file says of
sizes, and may be kept busy for ever: use it in a process with limits, such as
:mod:`cusa.data.foreign.guarded_process` has.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

# Characters of a name in a message.
_MAX_SHOWN = 100
# Instructions of plain data, as the module pickle names them.
_INSTRUCTIONS = """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8
    EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
"""
_CODES = [getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()]
_PythonUnpickler: Any = pickle._Unpickler


class StandIn(ABC):
    """A stand-in for an object that a pickle builds: keeps the state that the file gives it."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Take the object's state."""


class PlainUnpickler(_PythonUnpickler):
    """An unpickler of numbers, texts, bytes, tuples, lists, dictionaries, and results of functions.

    Args:
        stream: Where the pickle begins; after :meth:`load`, the stream stands behind it.
        names: What it may name, by module and name, and what is called in its place.
        persistent: Returns the object that a persistent id stands for; ``None``: there are none.
    """

    def __init__(
        self,
        stream: IO[bytes],
        names: Mapping[tuple[str, str], Callable[..., Any]],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(stream)
        self._names = names
        self._persistent = persistent

    def find_class(
        self,
        module: str,
        name: str,
    ) -> Any:
        """Return what is called in the place of a name."""
        module = module.replace("numpy.core.", "numpy._core.")  # where numpy 1 had it
        if (module, name) not in self._names:
            full_name = f"{module}.{name}"[:_MAX_SHOWN]
            raise pickle.UnpicklingError(f"{full_name} is neither a numpy array nor a torch tensor")
        return self._names[module, name]

    def persistent_load(self, persistent_id: Any) -> Any:
        """Return the object that a persistent id stands for."""
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        return self._persistent(persistent_id)

    def _begin_frame(self) -> None:
        n_bytes = int.from_bytes(self.read(8), "little")
        self._unframer.load_frame(n_bytes)
        # What follows a missing byte may still make sense.
        if len(self._unframer.current_frame.getbuffer()) < n_bytes:
            raise pickle.UnpicklingError("a frame is shorter than it says; bytes are missing")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        is_legal = any(function is legal for legal in self._names.values())
        if not is_legal or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        self.append(function(*arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], StandIn):
            raise pickle.UnpicklingError("it gives a state to what has none")
        self.stack[-1].set_state(state)

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _set_item(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def _update(self, pairs: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError("it gives items to what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # The hash of a tuple of tuples may take for ever.
            if not isinstance(key, (str, int)):
                kind = type(key).__name__
                raise pickle.UnpicklingError(f"a key is a {kind}, not a text or a number")
            self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = defaultdict(
        lambda: _refuse_instruction,
        {code: _PythonUnpickler.dispatch[code] for code in _CODES},
    )
    dispatch[pickle.FRAME[0]] = _begin_frame
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


def _refuse_instruction(_: PlainUnpickler) -> None:
    raise pickle.UnpicklingError("one of its instructions is none of plain data")
