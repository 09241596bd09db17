"""A function in a Python file of the user's, `FILE.py:FUNCTION`: found, called, and its failures
told with their line.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ntk_tt.runtime.files import is_plain_file


class UserFunction(NamedTuple):
    """Of a file of the user's.

    Attributes:
        flag: that named it, with which messages begin.
        path: of the file.
        function: itself.
        name: in the file.
    """

    flag: str
    path: Path
    function: Callable
    name: str

    def call(self, **offered: Any) -> Any:
        """What it returns, given those of the arguments on offer that it takes.

        Raises:
            ValueError: it needs another one, or fails; the line is named.
        """
        parameters = _parameters(self.function)
        everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        required = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.name not in offered
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        if required:
            *others, last = offered or [""]
            known = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(
                f"{self.flag}: {self.name!r} in {str(self.path)!r} needs {required[0]!r}, which is "
                f"not offered; take {f'only {known}' if known else 'nothing'}, or give it a default"
            )
        try:
            return self.function(
                **{
                    option: value
                    for option, value in offered.items()
                    if everything or any(option == parameter.name for parameter in parameters)
                }
            )
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{self.flag}: {self.name!r} failed {place_of(error, self.path)}; correct it"
            ) from error


def read_function(reference: str, *, flag: str, makes: str) -> UserFunction:
    """The function that `FILE.py:FUNCTION` means; the file is imported, and so run.

    Args:
        reference: as the user typed it.
        flag: where, for messages.
        makes: what the function is to make, for messages.

    Raises:
        ValueError: no such file or function, or the file cannot be imported.
    """
    file, _, name = reference.rpartition(":")
    if not file or not name or not file.endswith(".py"):
        raise ValueError(f"{flag}: cannot read {reference!r}; give path/to/file.py:function")
    path = Path(file)
    if not is_plain_file(path):
        raise ValueError(f"{flag}: there is no file {file!r}; give path/to/file.py:function")
    namespace = vars(_import(path, flag))
    if name not in namespace:
        functions = [
            other
            for other, value in namespace.items()
            if inspect.isfunction(value)
            and value.__module__ == namespace["__name__"]
            and not other.startswith("_")
        ]
        raise ValueError(
            f"{flag}: {file} has no {name!r}; it has the functions "
            f"{', '.join(functions) or '(none)'}"
        )
    if not callable(namespace[name]):
        raise ValueError(
            f"{flag}: {name!r} in {file} is something of type {type(namespace[name]).__name__}; "
            f"give a function that makes {makes}"
        )
    return UserFunction(flag, path, namespace[name], name)


def place_of(error: BaseException, path: Path) -> str:
    """`with TypeError: … (line 3)`: the last line of the user's file on the way to the error."""
    line = (
        error.lineno
        if isinstance(error, SyntaxError)
        else next(
            (
                frame.lineno
                for frame in reversed(traceback.extract_tb(error.__traceback__))
                if Path(frame.filename).resolve() == path.resolve()
            ),
            None,
        )
    )
    message = next(iter(str(error).splitlines()), "")
    return (
        f"with {type(error).__name__}"
        + (f": {message}" if message else "")
        + (f" (line {line})" if line else "")
    )


def _parameters(function: Callable) -> list[inspect.Parameter]:
    # NNX classes hide the signature of their `__init__` behind a metaclass
    if inspect.isclass(function):
        return list(inspect.signature(function.__init__).parameters.values())[1:]
    return list(inspect.signature(function).parameters.values())


def _import(path: Path, flag: str) -> ModuleType:
    """The file as a module of its own; its folder is searched for what it imports."""
    spec = importlib.util.spec_from_file_location(f"ntk_tt_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{flag}: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ValueError(
            f"{flag}: {str(path)!r} cannot be imported: it failed {place_of(error, path)}; "
            "correct it"
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
