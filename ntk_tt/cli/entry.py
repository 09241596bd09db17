"""How a command begins and ends: whatever happens is one line, and an exit code of docs/json.md."""

import contextlib
import functools
import operator
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

import ntk_tt
from ntk_tt.cli import commands, help
from ntk_tt.cli.config import with_config
from ntk_tt.cli.options import Data, Features, Models, Predict, Speed, Training, Verify, Watch
from ntk_tt.cli.save import CannotSave
from ntk_tt.cli.sweep_command import Budget, Sweep, plan, sweep
from ntk_tt.data import describe_data, list_data
from ntk_tt.features.store import default_folder
from ntk_tt.models import list_models
from ntk_tt.report import document as reports
from ntk_tt.runtime import interruption, terminal
from ntk_tt.runtime.compilation import keep_compiled
from ntk_tt.runtime.memory import check_limits

COMMANDS = {
    "predict": Predict,
    "verify": Verify,
    "sweep": Sweep,
    "plan": Budget,
    "features": Features,
    "speed": Speed,
    "watch": Watch,
    "models": Models,
    "data": Data,
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Whatever happens is one line; exit codes are in docs/json.md, and
    NTK_TT_TRACEBACK=1 lets unforeseen exceptions through.
    """
    if arguments is None:
        interruption.answer()
    with terminal.safe_output() as output:
        status = _status(arguments)
    interruption.leave(status)
    if output.error is not None:
        if terminal.is_closed_by_reader(output.error):
            sys.exit(128 + 13)  # as a shell says of what SIGPIPE ended
        terminal.say(
            f"cannot write to standard output: {output.error.strerror}; files that were asked for "
            "are written"
        )
        sys.exit(status or 1)
    if status:
        sys.exit(status)


def _status(arguments: list[str] | None) -> int:
    """The exit status of a command; what went wrong has been said."""
    choice: Any = functools.reduce(
        operator.or_,
        (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items()),
    )
    options: Any = None
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"ntk-tt {ntk_tt.__version__}, JAX {jax.__version__}")
        return 0
    if (asked := help.asked_for(arguments, COMMANDS)) is not None:
        help.print_help(arguments[0], asked)
        return 0
    try:
        options = tyro.cli(
            choice,
            prog="ntk-tt",
            description="How long fine-tuning will take, before you start it.",
            args=with_config(arguments, COMMANDS),
        )
        _execute(options)
    except CannotSave as error:
        terminal.say(str(error))
        return 1
    except ValueError as error:
        place = _place_in_users_file(error, options)
        terminal.say(
            (f"{place}: " if place else "")
            + str(error)
            + ("" if _is_ours(error) else "; NTK_TT_TRACEBACK=1 shows where")
        )
        return 2
    except OSError as error:
        if error is not getattr(sys.stdout, "error", None):
            own = (error.strerror or "").startswith("store: ")  # says where and what to do itself
            terminal.say(
                str(error.strerror)
                if own
                else f"cannot read or write {error.filename or 'a file'}: "
                f"{error.strerror or error}; check its permissions, free space or choose "
                "another path"
            )
        return 1
    except KeyboardInterrupt as stopped:
        line, status = interruption.describe(stopped)
        terminal.say(f"{line}{stopped}")
        return status
    except Exception as error:
        return _fault(error, options)
    return 0


def _execute(options: Any) -> None:
    if isinstance(options, Features | Training | Sweep):
        check_limits()
        with contextlib.suppress(ValueError):  # no home folder: nothing is kept
            keep_compiled(default_folder() / "compiled")
    match options:
        case Features():
            commands.features(options)
        case Speed():
            commands.speed(options)
        case Watch():
            commands.watch(options)
        case Models():
            reports.print_rows(list_models())
        case Data():
            reports.print_rows(
                list_data()
                if options.source is None
                else [describe_data(options.source, split=options.split)]
            )
        case Predict():
            commands.run(options)
        case Budget():
            plan(options)
        case Sweep():
            sweep(options)


def _fault(error: Exception, options: Any) -> int:
    """Says what nobody foresaw in one line, and whose fault it is; returns the exit status."""
    if os.environ.get("NTK_TT_TRACEBACK"):
        raise error
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = text if len(text) <= 500 else f"{text[:500]}…"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        terminal.say(
            f"out of memory ({text[:200]}); take a smaller --memory, --projections, --per-class, "
            "--classes, --image-size or --batch-size"
        )
        return 1
    if isinstance(error, RecursionError):
        terminal.say(
            "something in the input or the network is nested too deeply for Python; "
            "NTK_TT_TRACEBACK=1 shows where"
        )
        return 1
    if place := _place_in_users_file(error, options):
        terminal.say(f"{place}: {text}; correct it (NTK_TT_TRACEBACK=1 shows the whole way there)")
        return 2
    terminal.say(
        f"this is a fault of ntk-tt, not of yours: {text}; please report it with what "
        "NTK_TT_TRACEBACK=1 ntk-tt … prints"
    )
    return 70


def _is_ours(error: Exception) -> bool:
    """Whether the package itself raised it, so that its text is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or Path(__file__).parents[1] in Path(frames[-1].filename).parents


def _place_in_users_file(error: Exception, options: Any) -> str:
    """`model: FILE.py, line 12, in apply` where a network or an optimiser of the user's own was at
    work; empty otherwise.
    """
    for flag in ("model", "optimizer"):
        file, _, name = str(getattr(options, flag, "")).rpartition(":")
        if not name or not file.endswith(".py"):
            continue
        found = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.realpath(frame.filename) == os.path.realpath(file)
        ]
        if found:
            return f"{flag}: {file}, line {found[-1].lineno}, in {found[-1].name}"
    return ""
