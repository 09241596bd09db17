"""A file of flags: what stands in it is as if it were typed, before what is typed."""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

_FLAG = "--config"


def with_config(arguments: Sequence[str], commands: Mapping[str, type]) -> list[str]:
    """The arguments with the flags of the file that `--config FILE` names, where they are not
    typed.

    The file is TOML or YAML, by its suffix. Its keys are flags, with `-` or `_`. Those on top are
    for every command that has such a flag; those in a table with the name of a command are for that
    one alone, and count more.

    Args:
        arguments: as typed, the command first.
        commands: dataclass of flags by command.

    Raises:
        ValueError: the file cannot be read, or it has a key that is no flag, or a value that is
            none of a flag's.
    """
    path = _path(arguments)
    if path is None or arguments[0] not in commands:
        return list(arguments)
    kinds = _flags(commands[arguments[0]])
    typed = {each.partition("=")[0].replace("_", "-") for each in arguments[1:]}
    flags: list[str] = []
    for key, value in _of_command(_read(path), arguments[0], commands, path).items():
        if not {f"--{key}", f"--no-{key}"} & typed:
            flags += _as_typed(key, value, kinds[key], path)
    return [arguments[0], *flags, *arguments[1:]]


def _path(arguments: Sequence[str]) -> Path | None:
    """The file that is named; None where none is, or no name follows, which tyro says."""
    found = None
    for flag, following in zip(arguments, [*arguments[1:], None], strict=True):
        if flag == _FLAG and following is not None:
            found = following
        elif flag.startswith(f"{_FLAG}="):
            found = flag.removeprefix(f"{_FLAG}=")
    return None if found is None else Path(found)


def _flags(kind: type) -> dict[str, Any]:
    """Types of a command's flags, by name."""
    types = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name.replace("_", "-"): types[field.name]
        for field in dataclasses.fields(kind)
        if field.name != "config"
        and tyro.conf.Positional not in getattr(types[field.name], "__metadata__", ())
    }


def _read(path: Path) -> dict[str, Any]:
    """What a file holds."""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(
            f"config: cannot tell what {str(path)!r} is; give a .toml, .yaml or .yml file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if suffix == ".toml" else _yaml(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, _NoYaml) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config: {str(path)!r} cannot be read ({reason}); correct it") from error
    if not isinstance(found, dict):
        raise ValueError(f"config: {str(path)!r} has no keys; write lines such as steps: 300")
    return found


class _NoYaml(Exception):
    """What is no YAML."""


def _yaml(text: str) -> Any:
    """What YAML holds; nothing in it is executed."""
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "config: reading YAML needs pyyaml; pip install pyyaml, or write TOML"
        ) from error
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise _NoYaml(error) from error


def _of_command(
    found: Mapping[str, Any], command: str, commands: Mapping[str, type], path: Path
) -> dict[str, Any]:
    """The keys that count for a command, each one of its flags."""
    known = {name: set(_flags(kind)) for name, kind in commands.items()}
    everywhere = set().union(*known.values())
    for_all = {key: each for key, each in found.items() if not isinstance(each, dict)}
    taken = {
        key: value
        for key, value in _keys(for_all, everywhere, path, "").items()
        if key in known[command]
    }
    for name, table in ((key, each) for key, each in found.items() if isinstance(each, dict)):
        if name not in commands:
            raise ValueError(
                f"config: {name} in {str(path)!r} is the name of no command; tables are called "
                f"{', '.join(commands)}"
            )
        own = _keys(table, known[name], path, f" of {name}")
        taken |= own if name == command else {}
    return taken


def _keys(table: Mapping[Any, Any], known: Iterable[str], path: Path, whose: str) -> dict[str, Any]:
    """The same with keys as flags are spelt.

    Raises:
        ValueError: one is none of the flags that are known.
    """
    keys = {key: str(key).replace("_", "-") for key in table}
    for key, flag in keys.items():
        if flag not in known:
            near = difflib.get_close_matches(flag, sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else "; ntk-tt COMMAND --help lists them"
            raise ValueError(f"config: {key} in {str(path)!r} is no flag{whose}{hint}")
    return {flag: table[key] for key, flag in keys.items()}


def _as_typed(key: str, value: Any, kind: Any, path: Path) -> list[str]:
    """A key and its value as they would be typed; what is null is left to its default."""
    if value is None:
        return []
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"config: {key} in {str(path)!r} must be true or false, got {value!r}")
        return [f"--{key}" if value else f"--no-{key}"]
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict | list | bool) for each in values) or not values:
        raise ValueError(
            f"config: {key} in {str(path)!r} must be a number, a text or a list of them, got "
            f"{value!r}"
        )
    if tyro.conf.UseAppendAction in getattr(kind, "__metadata__", ()):
        return [text for each in values for text in (f"--{key}", str(each))]
    return [f"--{key}", *(str(each) for each in values)]
