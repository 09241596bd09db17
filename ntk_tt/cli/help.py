"""`--help` of commands with many flags: in groups, those that most runs need first."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

GROUPS = {
    "most used": "data classes per_class model weights optimizer learning_rate batch_size steps "
    "epochs target method",
    "data": "split validation augment on_corrupt image_size seed",
    "texts": "text_column label_column max_length pooling",
    "the network": "head trainable loss label_smoothing batch_norm",
    "the optimiser": "momentum nesterov weight_decay betas eps clip_norm weight_ema sampling "
    "schedule warmup_steps",
    "the prediction": "effort draws models seeds observe first_steps record_every smoothing "
    "thresholds loss_thresholds",
    "the answer": "file timed_steps budget deadline top csv json html plot all_times "
    "price_per_hour seconds_per_step device_speed",
    "features and memory": "projections projection precision memory store contrasts",
}
OTHER = "more"
_SHORT = 16  # characters of choices that stand beside a flag
_MANY = 15  # flags, from which on groups are worth their while


def asked_for(arguments: list[str], commands: dict[str, type]) -> type | None:
    """The command whose help is asked for, where it has many flags; else None."""
    if not arguments or not {"-h", "--help"} & set(arguments[1:]):
        return None
    kind = commands.get(arguments[0])
    is_large = kind is not None and len(dataclasses.fields(kind)) >= _MANY
    return kind if is_large else None


def grouped(kind: type) -> dict[str, list[str]]:
    """The flags of a command by group, each in one; what no group names is last."""
    names = [field.name for field in dataclasses.fields(kind)]
    found = {
        group: [name for name in listed.split() if name in names]
        for group, listed in GROUPS.items()
    }
    known = {name for each in found.values() for name in each}
    found[OTHER] = [name for name in names if name not in known]
    return {group: each for group, each in found.items() if each}


def print_help(name: str, kind: type, *, file: Any = None, width: int | None = None) -> None:
    """What a command does, and its flags in groups."""
    console = Console(file=file, width=width, highlight=False)
    texts, fields = descriptions(kind), {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    console.print(f"usage: ntk-tt {name} [FLAGS]\n")
    console.print(escape(" ".join((kind.__doc__ or "").split())))
    for group, names in grouped(kind).items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        console.print(f"\n[bold]{group}[/bold]")
        for each in names:
            value = "" if hints[each] is bool else f" {_metavar(hints[each])}"
            flag = each.replace("_", "-")
            is_positional = tyro.conf.Positional in getattr(hints[each], "__metadata__", ())
            shown = f"[{flag.upper()}]" if is_positional else f"--{flag}{value}"
            default = fields[each].default
            words = _words(hints[each]) if value == " NAME" else []
            told = f" One of {', '.join(words)}." if words else ""
            told += "" if default in (None, (), False) else f" (default: {_shown(default)})"
            table.add_row(escape(shown), escape(texts.get(each, "") + told))
        console.print(table)
    console.print(f"\nA boolean flag is turned off by --no-FLAG. More: docs/cli.md, `{name}`.")


def descriptions(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those it inherits from, as one line."""
    found: dict[str, str] = {}
    for each in reversed(inspect.getmro(kind)):
        if not dataclasses.is_dataclass(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _metavar(hint: Any) -> str:
    """What may follow a flag."""
    origin, given = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _metavar(given[0])
    if origin is typing.Literal:
        listed = "|".join(map(str, given))
        return listed if len(listed) <= _SHORT else "NAME"
    if origin in (typing.Union, types.UnionType):
        parts = [_metavar(each) for each in given if each is not type(None)]
        return "NAME" if "NAME" in parts else "|".join(parts)
    if origin is tuple:
        return " ".join(_metavar(each) for each in given if each is not ...)
    names = {int: "N", float: "X", str: "TEXT"}
    return names.get(hint, "PATH")


def _words(hint: Any) -> list[str]:
    """The words that a flag takes."""
    if typing.get_origin(hint) is typing.Literal:
        return list(map(str, typing.get_args(hint)))
    return [word for each in typing.get_args(hint) for word in _words(each)]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
