"""An unpickler for untrusted files, which knows few opcodes and few names.

It is based on the unpickler that the standard library has in pure Python, reduced to the opcodes of
plain data, and calls only the functions that it is given. It still believes the sizes that a file
states, and can be kept busy forever: use it in a process with limits, such as that of
:mod:`cusa.data.foreign.guarded_process`.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

# Characters of a name that a message quotes.
_MAX_SHOWN = 100
# Opcodes of plain data, as the module pickle names them.
_OPCODES = """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8
    EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
"""
_CODES = [getattr(pickle, name)[0] for name in _OPCODES.split()]
_PythonUnpickler: Any = pickle._Unpickler


class StandIn(ABC):
    """A stand-in for an object that a pickle builds; it keeps the state given in the file."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Take the object's state."""


class PlainUnpickler(_PythonUnpickler):
    """An unpickler of numbers, texts, bytes, tuples, lists, dictionaries, and results of functions.

    Args:
        stream: A stream positioned at the pickle; :meth:`load` leaves it at the pickle's end.
        names: The legal names, as (module, name), and what is called in place of each.
        persistent: Returns the object for a persistent id; ``None``: such ids are refused.
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
        """Return what is called in place of a name.

        Raises:
            pickle.UnpicklingError: If the name is not legal.
        """
        module = module.replace("numpy.core.", "numpy._core.")  # its place in numpy 1
        if (module, name) not in self._names:
            full_name = f"{module}.{name}"[:_MAX_SHOWN]
            raise pickle.UnpicklingError(f"{full_name} is neither a numpy array nor a torch tensor")
        return self._names[module, name]

    def persistent_load(self, persistent_id: Any) -> Any:
        """Return the object for a persistent id.

        Raises:
            pickle.UnpicklingError: If such ids are refused.
        """
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        return self._persistent(persistent_id)

    def _begin_frame(self) -> None:
        n_bytes = int.from_bytes(self.read(8), "little")
        self._unframer.load_frame(n_bytes)
        # A pickle that lacks bytes may still be parsed, with other contents.
        if len(self._unframer.current_frame.getbuffer()) < n_bytes:
            raise pickle.UnpicklingError("a frame is shorter than it says; bytes are missing")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        is_legal = any(function is legal for legal in self._names.values())
        if not is_legal or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something that is not a legal function")
        self.append(function(*arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], StandIn):
            raise pickle.UnpicklingError("it sets the state of an object that has none")
        self.stack[-1].set_state(state)

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _set_item(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def _update(self, pairs: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError("it sets items of something that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Hashing nested tuples could take forever.
            if not isinstance(key, (str, int)):
                kind = type(key).__name__
                raise pickle.UnpicklingError(f"a key is a {kind}, not a text or a number")
            self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = defaultdict(
        lambda: _refuse_opcode,
        {code: _PythonUnpickler.dispatch[code] for code in _CODES},
    )
    dispatch[pickle.FRAME[0]] = _begin_frame
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


def _refuse_opcode(_: PlainUnpickler) -> None:
    raise pickle.UnpicklingError("it has an opcode that plain data does not need")
