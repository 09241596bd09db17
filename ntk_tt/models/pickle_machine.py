"""A pickle as data: its instructions are carried out here on plain containers, and nothing that it
names is looked up.

A pickle is a program for a small stack machine. Python's own machine calls what the program names,
hashes its keys, and lets a few hundred bytes ask for work without end (a tuple of a tuple of a
tuple …, each twice the last). This one knows the instructions that arrange data; names become
stand-ins of the caller's choice, keys of dictionaries that are no text are dropped with their
values, and the number of instructions is bounded, and with it time and memory.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from ntk_tt.models.stored import quoted

MAX_INSTRUCTIONS = (
    2_000_000  # a checkpoint of 300 tensors has 10,000; two million take some seconds and 300 MB
)


class StandIn(NamedTuple):
    """What a name in a pickle stands for where the pickle calls it: `make(*arguments)` arranges
    data and does nothing else.
    """

    make: Callable[..., Any]


class Ignored:
    """Stands for an object that is of no interest, such as the arguments of a training script;
    takes anything, keeps nothing.
    """


IGNORED = Ignored()


def load(stream: Any, name: Callable[[str, str], Any], refer: Callable[[Any], Any]) -> Any:
    """The value that a pickle makes.

    Args:
        stream: bytes to read from (`read`, `readline`, `tell`); left behind the pickle's end.
        name: `(module, name) -> ` a `StandIn`, or a value that only stands for itself; raises a
            ValueError for what is not known.
        refer: what a reference to something outside of the pickle (a persistent id) stands for.

    Raises:
        ValueError: an instruction that calls or builds anything else, more than `MAX_INSTRUCTIONS`,
            a damaged pickle.
    """
    machine = _Machine(name, refer)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_INSTRUCTIONS:
            raise ValueError(
                f"its pickle has more than {MAX_INSTRUCTIONS} instructions; save the state dict "
                "alone"
            )
        if instruction.name == "STOP":
            break
        machine.run(instruction.name, argument)
    return machine.pop()


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    }
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": Ignored}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(self, name: Callable[[str, str], Any], refer: Callable[[Any], Any]):
        self.name, self.refer = name, refer
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, instruction: str, argument: Any) -> None:
        match instruction:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                if not 0 <= argument < 2**32:
                    raise ValueError(
                        "its pickle is damaged: it numbers what it makes beyond all bounds"
                    )
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET" | "GET":
                if argument not in self.memo:
                    raise ValueError("its pickle refers to what it has not made")
                self.stack.append(self.memo[argument])
            case _ if instruction in _LITERALS:
                self.stack.append(argument)
            case _ if instruction in _CONSTANTS:
                self.stack.append(_CONSTANTS[instruction])
            case _ if instruction in _EMPTY:
                self.stack.append(_EMPTY[instruction]())
            case _ if instruction in _TUPLES:
                self.stack.append(tuple(self.take(_TUPLES[instruction])))
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(tuple(self.since_mark()))
            case "LIST":
                self.stack.append(self.since_mark())
            case "DICT":
                items, made = self.since_mark(), {}
                self.set_items(made, items)
                self.stack.append(made)
            case "FROZENSET":
                self.since_mark()
                self.stack.append(IGNORED)
            case "SETITEM":
                items = self.take(2)
                self.set_items(self.top(), items)
            case "SETITEMS":
                items = self.since_mark()
                self.set_items(self.top(), items)
            case "APPEND":
                items = self.take(1)
                self.extend(self.top(), items)
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self.extend(self.top(), items)
            case "GLOBAL":
                self.stack.append(self.name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                if not (isinstance(module, str) and isinstance(attribute, str)):
                    raise ValueError("its pickle asks for a name that is no text")
                self.stack.append(self.name(module, attribute))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self.take(2)
                if not (isinstance(function, StandIn) and isinstance(arguments, tuple)):
                    raise ValueError("its pickle calls what is no function")
                self.stack.append(function.make(*arguments))
            case "BUILD":
                self.take(1)
                # an OrderedDict's attributes, such as _metadata, are left out
                if not isinstance(self.top(), dict | Ignored):
                    raise ValueError(
                        "its pickle sets attributes of something of type "
                        f"{type(self.top()).__name__}"
                    )
            case "BINPERSID":
                self.stack.append(self.refer(self.pop()))
            case "POP":
                if self.marks and self.marks[-1] == len(self.stack):
                    self.marks.pop()
                else:
                    self.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                self.stack.append(self.top())
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(
                    f"its pickle uses the instruction {instruction}; save the state dict alone"
                )

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("its pickle is damaged: it takes what is not there")
        return self.stack[-1]

    def pop(self) -> Any:
        return self.take(1)[0]

    def take(self, count: int) -> list[Any]:
        """The last `count` values, off the stack."""
        if len(self.stack) < count:
            raise ValueError("its pickle is damaged: it takes what is not there")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("its pickle is damaged: it takes what is not there")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    @staticmethod
    def set_items(target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            target.update(
                (key, value)
                for key, value in zip(items[::2], items[1::2], strict=True)
                if isinstance(key, str)
            )
        elif not isinstance(target, Ignored):
            raise ValueError(f"its pickle sets items of something of type {type(target).__name__}")

    @staticmethod
    def extend(target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Ignored):
            raise ValueError(f"its pickle appends to something of type {type(target).__name__}")


def ordered_dict(*arguments: Any) -> dict[str, Any]:
    """What collections.OrderedDict makes: empty, or, as Python 2 wrote it, from a list of pairs."""
    if not arguments:
        return {}
    if (
        len(arguments) != 1
        or not isinstance(arguments[0], list)
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in arguments[0])
    ):
        raise ValueError("it makes a dictionary of something that is no list of pairs")
    made = {key: value for key, value in arguments[0] if isinstance(key, str)}
    arguments[
        0
    ].clear()  # a pickle may name the same list again and again, at a few bytes each time
    return made


def refuse(module: str, name: str) -> ValueError:
    """The error for a name that is not known."""
    return ValueError(
        f"it asks for {quoted(module + '.' + name)[1:-1]}, and only tensors in dictionaries are "
        "read; save model.state_dict() alone"
    )
