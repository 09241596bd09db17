"""The command line: what it refuses, the JSON it writes, what an interruption leaves."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import ntk_tt
import ntk_tt.models
from ntk_tt import OptimizerConfig
from ntk_tt.cli import commands, main
from ntk_tt.cli.flags import optimizer_flags
from ntk_tt.cli.options import Predict
from ntk_tt.cli.setting import optimizer_of
from ntk_tt.dynamics.trajectory import Trajectory
from ntk_tt.models import save_weights
from ntk_tt.prediction.by_method import Predicted, Recording, as_slow_as
from ntk_tt.prediction.one_setting import summarize_runs
from ntk_tt.report.parts import optimizer_part
from ntk_tt.report.text import print_report
from ntk_tt.times.calibration import slowdown
from tests.disks import full_disk

TINY_TASK = (
    *("--classes", "2", "--per-class", "4", "--image-size", "16", "--steps", "4"),
    *("--method", "replay"),
)
BATCHES = ("--batch-size", "4")


# bad input


def write_folder(root: Path, counts: dict[str, int]) -> str:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number}.png")
    return f"folder:{root}"


def folder_with_a_broken_image(root: Path) -> str:
    source = write_folder(root, {"a": 3, "b": 2})
    (root / "b" / "broken.png").write_bytes((root / "b" / "0.png").read_bytes()[:40])
    return source


def changed_checkpoint(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> str:
    """The bundled weights, changed, in a file."""
    arrays, record = ntk_tt.models.read_weights(
        Path(ntk_tt.models.__file__).parent / "bundled" / "resnet8_tiny_imagenet32.safetensors"
    )
    change(arrays)
    save_weights(path, arrays, record=record)
    return str(path)


def set_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["block2.conv1.kernel"][0, 0, 0, 0] = np.nan


def drop_channels(arrays: dict[str, np.ndarray]) -> None:
    arrays["block2.conv1.kernel"] = arrays["block2.conv1.kernel"][..., :40].copy()


def below_a_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file" / "report.json")


def chain_file(folder: Path, body: str) -> str:
    """A file of the user's whose `factory` makes an optimiser."""
    (folder / "chain.py").write_text(f"import optax\ndef factory(num_steps):\n    {body}\n")
    return f"{folder / 'chain.py'}:factory"


# What is given (as text, or as what makes it from an empty folder), then what the one line must
# hold: argument, value, remedy.
BAD_INPUT = {
    "unknown network": (["--model", "resnet9"], "model", "resnet9", "known: resnet8"),
    "no weights": (
        ["--model", "mlp"],
        "weights",
        "none of mlp ship",
        "give --weights FILE, hf:owner/name, or random",
    ),
    "no such weights": (
        ["--weights", "nothing.safetensors"],
        "weights",
        "nothing.safetensors",
        "give a .safetensors or .pth file",
    ),
    "weights with NaN": (
        ["--weights", lambda folder: changed_checkpoint(folder / "nan.safetensors", set_nan)],
        "weights",
        "block2.conv1.kernel",
        "NaN",
    ),
    "weights that do not fit": (
        [
            "--weights",
            lambda folder: changed_checkpoint(folder / "small.safetensors", drop_channels),
        ],
        "weights",
        "(3, 3, 16, 40)",
        "needs (3, 3, 16, 48)",
    ),
    "unknown data": (["--data", "mnist"], "data", "'mnist'", "give 'digits'"),
    "no such folder": (["--data", "folder:nowhere"], "data", "'nowhere'", "give folder:PATH"),
    "a name too long": (["--data", "folder:" + "x" * 300], "", "x" * 300, "cannot read"),
    "unreadable image": (
        ["--data", folder_with_a_broken_image, "--classes", "2", "--per-class", "3"],
        "data",
        "broken.png",
        "remove or replace it",
    ),
    "one class": (
        ["--data", lambda folder: write_folder(folder / "set", {"a": 3}), "--classes", "2"],
        "data",
        "1 class(es) (a)",
        "at least two",
    ),
    "too few images": (
        [
            "--data",
            lambda folder: write_folder(folder / "set", {"a": 3, "b": 3}),
            "--classes",
            "2",
            "--per-class",
            "4",
        ],
        "per-class",
        "4 images asked",
        "has 3",
    ),
    "too many classes": (["--classes", "11"], "classes", "11 asked", "at most 10"),
    "a single class asked": (["--classes", "1"], "classes", "got 1", "at least 2"),
    "no images asked": (["--per-class", "0"], "per-class", "got 0", "at least 1"),
    "batch larger than the data": (
        ["--classes", "2", "--per-class", "4", "--batch-size", "9"],
        "batch-size",
        "9 is larger than the 8",
        "take at most that",
    ),
    "batch of none": (["--batch-size", "0"], "batch-size", "got 0", "at least 1"),
    "no steps": (["--steps", "0"], "steps", "got 0", "at least 1"),
    "negative steps": (["--steps", "-5"], "steps", "got -5", "at least 1"),
    "learning rate 0": (["--learning-rate", "0"], "learning-rate", "got 0.0", "must be positive"),
    "learning rate negative": (
        ["--learning-rate", "-0.1"],
        "learning-rate",
        "got -0.1",
        "must be positive",
    ),
    "learning rate nan": (
        ["--learning-rate", "nan"],
        "learning-rate",
        "got nan",
        "must be positive and finite",
    ),
    "momentum 1": (["--momentum", "1.0"], "momentum", "got 1.0", "must lie in [0, 1)"),
    "nesterov without momentum": (
        ["--nesterov", "--momentum", "0"],
        "nesterov",
        "momentum above 0",
        "leave nesterov out",
    ),
    "weight decay negative": (
        ["--weight-decay", "-0.0001"],
        "weight-decay",
        "got -0.0001",
        "must be 0 or more",
    ),
    "unknown optimizer": (
        ["--optimizer", "adamax"],
        "optimizer",
        "'adamax'",
        "give sgd, adam, adamw, lion, rmsprop, adagrad, or path/to/file.py:function",
    ),
    "optimizer of no file": (
        ["--optimizer", "none.py:factory"],
        "optimizer",
        "'none.py'",
        "give path/to/file.py:function",
    ),
    "optimizer that is no chain": (
        ["--optimizer", lambda folder: chain_file(folder, "return 3")],
        "optimizer",
        "something of type int",
        "return an optax.GradientTransformation",
    ),
    "optimizer that fails": (
        ["--optimizer", lambda folder: chain_file(folder, "return optax.adamw()")],
        "optimizer",
        "(line 3)",
        "correct it",
    ),
    "a chain with flags": (
        [
            "--optimizer",
            lambda folder: chain_file(folder, "return optax.adamw(0.1)"),
            "--weight-decay",
            "0.1",
        ],
        "weight-decay",
        "got 0.1",
        "put what it does into the chain",
    ),
    "a frozen kernel and another optimizer": (
        ["--optimizer", "adamw", "--method", "replay"],
        "optimizer",
        "method 'replay' knows SGD only, got adamw",
        "take method=",
    ),
    "momentum of adam": (
        ["--optimizer", "adam", "--momentum", "0.9"],
        "momentum",
        "adam has none",
        "take sgd or rmsprop",
    ),
    "betas of sgd": (["--betas", "0.9", "0.99"], "betas", "sgd has none", "take adam or adamw"),
    "eps 0": (["--optimizer", "adam", "--eps", "0"], "eps", "got 0.0", "must be positive"),
    "clipping to 0": (["--clip-norm", "0"], "clip-norm", "got 0.0", "must be positive"),
    "only warm-up": (["--warmup-steps", "150"], "warmup-steps", "got 150", "0 … 149"),
    "two warm-ups": (
        ["--warmup-steps", "5", "--schedule", "warmup-cosine"],
        "warmup-steps",
        "got 5 steps",
        "take the schedule 'cosine'",
    ),
    "threshold 0": (["--thresholds", "0"], "thresholds", "got 0.0", "between 0 and 1"),
    "threshold above 1": (
        ["--thresholds", "0.5", "1.5"],
        "thresholds",
        "got 1.5",
        "loss-thresholds",
    ),
    "threshold negative": (["--thresholds", "-0.1"], "thresholds", "got -0.1", "between 0 and 1"),
    "loss threshold negative": (
        ["--loss-thresholds", "-1"],
        "loss-thresholds",
        "got -1.0",
        "must be positive",
    ),
    "projections 0": (["--projections", "0"], "projections", "got 0", "at least 1"),
    "seeds 0": (["--seeds", "0"], "seeds", "got 0", "at least 1"),
    "seed negative": (["--seed", "-1"], "seed", "got -1", "must lie in 0"),
    "seed too large": (["--seed", str(2**70)], "seed", f"got {2**70}", "must lie in 0"),
    "records every 0 steps": (["--record-every", "0"], "record-every", "got 0", "at least 1"),
    "observe all": (["--observe", "150"], "observe", "got 150", "1 … 149"),
    "first steps without one-shot": (
        ["--first-steps", "5"],
        "first-steps",
        "got 'auto'",
        "take --observe",
    ),
    "a target of nothing": (
        ["--target", "accuracy=0.9"],
        "target",
        "got 'accuracy=0.9'",
        "give loss=",
    ),
    "a target past all": (["--target", "error=200%"], "target", "got 'error=200%'", "below 1"),
    "steps and epochs": (["--steps", "9", "--epochs", "2"], "epochs", "got 2.0", "give either"),
    "no epochs": (["--epochs", "0"], "epochs", "got 0.0", "must lie"),
    "first steps 0": (
        ["--first-steps", "0", "--method", "one-shot"],
        "first-steps",
        "got 0",
        "1 … 149",
    ),
    "smoothing 0": (["--smoothing", "0"], "smoothing", "got 0", "at least 1"),
    "price negative": (
        ["--price-per-hour", "-2"],
        "price-per-hour",
        "got -2.0",
        "must be 0 or more",
    ),
    "steps without end": (
        ["--steps", "10000000000"],
        "steps",
        "got 10000000000",
        "at most 10000000",
    ),
    "seeds without end": (["--seeds", "1000000000"], "seeds", "got 1000000000", "at most 10000"),
    "a record a step of too many": (
        ["--steps", "10000000"],
        "record-every",
        "10000000 steps make 10000000 records",
        "take a larger number",
    ),
    "records of too many orders": (
        ["--steps", "1000000", "--record-every", "10", "--batch-size", "4", "--seeds", "1000"],
        "record-every",
        "100000 records each of 1000 orders",
        "fewer seeds",
    ),
    "more draws than memory": (
        ["--steps", "5000000", "--record-every", "1000", "--batch-size", "500"],
        "steps",
        "draw 2500000000 samples",
        "a smaller batch-size",
    ),
    "batch of a number beyond numbers": (
        ["--batch-size", str(10**30), *TINY_TASK],
        "batch-size",
        f"{10**30} is larger than the 8",
        "take at most that",
    ),
    "records beyond numbers": (
        ["--record-every", str(10**30)],
        "record-every",
        f"got {10**30}",
        "at most",
    ),
    "smoothing beyond numbers": (
        ["--smoothing", str(10**30)],
        "smoothing",
        f"got {10**30}",
        "at most",
    ),
    "large images": (["--image-size", "20000"], "image-size", "got 20000", "at most 4096"),
    "images of no size": (["--image-size", "0"], "image-size", "got 0", "at least 1"),
    "classes beyond numbers": (["--classes", str(10**30)], "classes", f"got {10**30}", "at most"),
    "images of a class beyond numbers": (
        ["--per-class", str(10**30)],
        "per-class",
        f"got {10**30}",
        "at most",
    ),
    "projections beyond numbers": (
        ["--projections", str(10**12)],
        "projections",
        f"got {10**12}",
        f"at most {2**31 - 1}",
    ),
    "adapters of an absurd rank": (
        ["--trainable", "lora:1000000", *TINY_TASK],
        "trainable",
        "rank 1000000",
        "take a rank of at most 96",
    ),
    "adapters scaled without end": (
        ["--trainable", "lora:4:inf", *TINY_TASK],
        "alpha",
        "got inf",
        "must be finite",
    ),
    "one step, real ones first": (
        ["--steps", "1", "--method", "one-shot"],
        "steps",
        "got 1",
        "at least 2",
    ),
    "one step, observed": (["--steps", "1", "--observe", "1"], "steps", "got 1", "at least 2"),
    "report and figure in one file": (
        ["--json", "both.png", "--plot", "./both.png"],
        "plot",
        "'both.png'",
        "another name",
    ),
    "plot of unknown kind": (
        ["--plot", "figure.bmp"],
        "plot",
        "'figure.bmp'",
        "ends in .png, .pdf or .svg",
    ),
    "json below a file": (["--json", below_a_file], "json", "report.json", "choose another path"),
    "json into a folder": (["--json", str], "json", "Is a directory", "choose another path"),
}
EXIT_CODES = {"a name too long": 1}  # the system refuses it, not a check of ours


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_before_any_work(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for work in ("pass_over", "predict_from", "finetune"):
        monkeypatch.setattr(
            commands, work, lambda *_, work=work, **__: pytest.fail(f"{work} was reached")
        )
    given, argument, value, remedy = BAD_INPUT[case]
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *(str(text(tmp_path)) if callable(text) else text for text in given)])
    out, err = capsys.readouterr()
    assert exit_.value.code == EXIT_CODES.get(case, 2)
    assert out == ""
    assert err.startswith("ntk-tt: ")
    assert err.count("\n") == 1
    line = err.replace("_", "-")
    for part in (argument, value, remedy):
        assert part.replace("_", "-") in line


@pytest.mark.parametrize(
    "given",
    [
        ["--steps", "many"],
        ["--method", "magic"],
        ["--loss", "hinge"],
        ["--batch-size", "some"],
        ["--bogus"],
    ],
)
def test_what_cannot_be_parsed_is_refused_by_name(given, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *given])
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    assert all(word in err for word in given)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--learning-rat", "--learning-rate"),
        ("--batchsize", "--batch-size"),
        ("--weigth-decay", "--weight-decay"),
    ],
)
def test_what_a_misspelt_flag_was_to_be_is_said(given, meant, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["predict", given, "0.1"])
    assert exit_.value.code == 2
    refused, _, hint = capsys.readouterr().err.partition("Perhaps you meant")
    assert given in refused
    assert meant in hint.split()


def test_bad_input_leaves_no_files_and_no_older_report_is_lost(tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text("{}")
    for report in (old, tmp_path / "new.json"):
        with pytest.raises(SystemExit):
            main(
                [
                    "predict",
                    "--data",
                    "mnist",
                    "--json",
                    str(report),
                    "--plot",
                    str(tmp_path / "new.png"),
                ]
            )
    assert "mnist" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "{}"


def test_features_that_cannot_be_stored_say_where_and_why(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "features",
                *("--model", "mlp", "--weights", "random"),
                *TINY_TASK[:-4],
                *("--projections", "8", "--store", str(tmp_path / "file")),
            ]
        )
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"ntk-tt: store: cannot make a store in {tmp_path / 'file'}")
    assert err.count("\n") == 1
    assert err.count("check ") == 1


WATCH_INPUT = [
    ("--poll", "inf"),
    ("--poll", "nan"),
    ("--poll", "0"),
    ("--poll", "1e9"),
    ("--seconds-per-step", "nan"),
    ("--seconds-per-step", "inf"),
    ("--seconds-per-step", "-1"),
]


@pytest.mark.parametrize("given", WATCH_INPUT)
def test_bad_flags_of_watch(given, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["watch", str(tmp_path / "log.csv"), *given])
    assert exit_.value.code == 2
    assert f"ntk-tt: {given[0][2:]}: must be " in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys):
    for error in (
        RuntimeError("Unable to initialize backend 'cuda':\nno plugin"),
        AssertionError(),
    ):
        monkeypatch.setenv("JAX_PLATFORMS", "cuda")
        monkeypatch.setattr(jax, "devices", lambda error=error: (_ for _ in ()).throw(error))
        with pytest.raises(SystemExit) as exit_:
            main(["predict"])
        assert exit_.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("ntk-tt: JAX_PLATFORMS: JAX cannot compute on 'cuda' here (")
        assert "unset it or set it to cpu" in err
        assert err.count("\n") == 1


FAULTS = [
    (
        TypeError("odd\nthing"),
        70,
        "this is a fault of ntk-tt, not of yours: TypeError: odd thing; please report it",
    ),
    (AssertionError(), 70, "this is a fault of ntk-tt, not of yours: AssertionError:"),
    (KeyError("x" * 10_000), 70, "xxx…"),
    (MemoryError(), 1, "out of memory (MemoryError: ); take a smaller --memory, --projections"),
    (np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("float32")), 1, "out of memory ("),
    (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes"),
        1,
        "out of memory (JaxRuntimeError: RESOURCE_EXHAUSTED",
    ),
    (jax.errors.JaxRuntimeError("INTERNAL: odd"), 70, "JaxRuntimeError: INTERNAL: odd"),
    (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
    (ValueError("loss: what, where\n  what to do"), 2, "loss: what, where what to do"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "invalid start byte"),
]


@pytest.mark.parametrize(("error", "code", "part"), FAULTS)
def test_whatever_nobody_foresaw_is_one_line_and_a_traceback_on_request(
    error, code, part, monkeypatch, capsys
):
    def fail(_):
        raise error

    monkeypatch.setattr(commands, "run", fail)
    monkeypatch.setenv("NTK_TT_TRACEBACK", "")
    with pytest.raises(SystemExit) as exit_:
        main(["predict"])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("ntk-tt: ")
    assert part in err
    assert len(err) < 1000
    if not isinstance(error, ValueError):
        monkeypatch.setenv("NTK_TT_TRACEBACK", "1")
        with pytest.raises(type(error)):
            main(["predict"])


def test_a_failure_in_the_users_own_file_names_its_line(tmp_path, monkeypatch, capsys):
    """It runs on the images that are tried, and no longer on a batch."""
    (tmp_path / "mine.py").write_text("""
import jax.numpy as jnp

def factory(num_classes):
    def apply(params, images):
        if len(images) == 8:
            raise KeyError("no such layer")
        return jnp.tanh(images.reshape(len(images), -1)[:, :num_classes] * params["w"])
    return apply, {"w": jnp.ones(num_classes)}
""")
    monkeypatch.setenv("NTK_TT_TRACEBACK", "")
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--model", f"{tmp_path / 'mine.py'}:factory", *TINY_TASK])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("ntk-tt: model: ")
    assert "mine.py, line 7" in err
    assert err.count("\n") == 1


def test_that_a_file_of_the_users_own_is_run_is_said(capsys):
    main(["predict", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert out.count("that file is run as any Python program") == 2  # a network, an optimiser


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device", "report.json")

    monkeypatch.setattr(commands, "run", full)
    with pytest.raises(SystemExit) as exit_:
        main(["predict"])
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "report.json: No space left on device" in err


# whole runs

TIMES = {"epsilon_relative", "epsilon_absolute", "loss_below", "error_below", "plateau"}
COST = {
    "predict_seconds",
    "train_seconds",
    "ratio",
    "predict_compile_seconds",
    "train_compile_seconds",
}


def strict(path: Path) -> dict:
    """A JSON document without NaN or infinity, which are no JSON."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def check_report(report: dict, *, num_steps: int, with_truth: bool) -> None:
    """The contract of the JSON document."""
    assert set(report) == {
        "task",
        "optimizer",
        "prediction",
        "truth",
        "cost",
        "verdict",
        "environment",
    }
    assert (report["truth"] is not None) == with_truth
    for curve in [report["prediction"]] + [report["truth"]] * with_truth:
        assert {"steps", "loss", "error", "times"} <= set(curve)
        assert curve["steps"][0] == 0
        assert curve["steps"][-1] == num_steps
        assert curve["steps"] == sorted(set(curve["steps"]))
        assert len(curve["steps"]) == len(curve["loss"]) == len(curve["error"])
        for number in curve["loss"] + curve["error"]:
            assert number is None or (isinstance(number, float) and math.isfinite(number))
        check_times(curve["times"], num_steps)
    for bounds in ("times_low", "times_high"):
        check_times(report["prediction"][bounds], num_steps)
    cost = report["cost"]
    assert set(cost) >= COST
    for name in ("predict_seconds", "train_seconds", "predict_compile_seconds"):
        assert cost[name] > 0
    assert cost["ratio"] == pytest.approx(cost["train_seconds"] / cost["predict_seconds"])
    assert (
        cost["train_compile_seconds"] >= 0
    )  # that of the verdict's steps, where there is no truth
    assert set(report["verdict"]) >= {
        "stability_margin",
        "linearization_residual",
        "trust",
        "reason",
    }
    assert report["verdict"]["trust"] in ("high", "medium", "low", "none")
    assert report["verdict"]["reason"]
    assert report["environment"]["jax"] == jax.__version__


def check_times(times: dict, num_steps: int) -> None:
    assert set(times) == TIMES
    thresholds = {"0.01", "0.05", "0.1", "0.2", "0.4", "0.5"}
    for family in TIMES - {"plateau"}:
        assert set(times[family]) == thresholds | ({"1"} if family == "loss_below" else set())
    for steps in [
        times["plateau"],
        *(steps for family in TIMES - {"plateau"} for steps in times[family].values()),
    ]:
        assert steps is None or (isinstance(steps, int) and 0 <= steps <= num_steps)


@pytest.mark.slow
def test_verify_writes_report_figure_and_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")  # no line is broken
    main(
        [
            "verify",
            *TINY_TASK,
            *BATCHES,
            "--seed",
            "3",
            "--json",
            str(tmp_path / "new" / "report.json"),
            "--plot",
            str(tmp_path / "figure.png"),
        ]
    )
    report = strict(tmp_path / "new" / "report.json")
    check_report(report, num_steps=4, with_truth=True)
    assert {
        name: report["task"][name]
        for name in ("model", "data", "num_samples", "num_classes", "image_size", "seed")
    } == {
        "model": "resnet8",
        "data": "digits",
        "num_samples": 8,
        "num_classes": 2,
        "image_size": 16,
        "seed": 3,
    }
    assert {
        name: report["optimizer"][name]
        for name in ("learning_rate", "momentum", "batch_size", "steps")
    } == {"learning_rate": 0.001, "momentum": 0.9, "batch_size": 4, "steps": 4}
    assert report["prediction"]["num_seeds"] == 5
    # one network, one task
    assert report["prediction"]["loss"][0] == pytest.approx(report["truth"]["loss"][0], rel=1e-4)
    assert report["prediction"]["error"][0] == report["truth"]["error"][0]
    assert report["truth"]["diverged_at"] is None
    assert Image.open(tmp_path / "figure.png").size[0] > 500
    # nothing half-written
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "figure.png",
        "report.json",
    ]
    out = capsys.readouterr().out
    for part in (
        "off by",
        f"trust: {report['verdict']['trust']}",
        "report.json",
        "figure.png",
        "in truth",
    ):
        assert part in out


def test_brackets_in_names_are_printed_as_they_are(capsys):
    curve = {
        "steps": [0, 4],
        "loss": [1.0, 0.5],
        "error": [0.5, 0.25],
        "levels": [],
        "method": "replay",
    }
    print_report(
        {
            "task": {
                "model": "mine[bold]",
                "data": "folder:x/[/red]/y",
                "num_samples": 4,
                "num_classes": 2,
            },
            "prediction": curve,
            "truth": None,
            "verdict": {"trust": "high", "reason": "[/red] is no colour"},
            "optimizer": {
                "batch_size": None,
                "nesterov": False,
                "momentum": 0,
                "weight_decay": 0,
                "learning_rate": 0.1,
                "schedule": "constant",
                "name": "chain.py:[bold]",
            },
            "cost": {
                "train_measured": False,
                "predict_seconds": 1.0,
                "predict_compile_seconds": 1.0,
                "train_seconds": 1.0,
                "ratio": 1.0,
                "seconds_per_step": 0.25,
            },
        }
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "chain.py:[bold], learning rate 0.1" in out
    assert "mine[bold] on folder:x/[/red]/y: 4 samples" in out
    assert "[/red] is no colour" in out


class TinyNetwork(nnx.Module):
    """A network with batch norm that compiles in no time."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, num_classes, rngs=rngs)

    def features(self, images):
        return jax.nn.relu(self.norm(self.conv(images))).mean(axis=(1, 2))

    def __call__(self, images):
        return self.head(self.features(images))


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(path, nnx.to_pure_dict(nnx.state(TinyNetwork(2, rngs=nnx.Rngs(1)))))
    return path


@pytest.fixture(scope="module")
def tiny_run(tiny_weights):
    """Runs a command on the tiny network through `main`; returns the report it wrote."""
    folder = tiny_weights.parent

    def run(command: str, *more: str, report: Path = folder / "report.json") -> dict:
        report.unlink(missing_ok=True)
        main(
            [
                command,
                "--model",
                "tiny",
                "--weights",
                str(tiny_weights),
                *TINY_TASK,
                *more,
                "--json",
                str(report),
            ]
        )
        return strict(report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ntk_tt.models.MODELS, "tiny", ntk_tt.models.Architecture(TinyNetwork))
        yield run


@pytest.fixture(scope="module")
def plain(tiny_run) -> dict:
    return tiny_run("verify", *BATCHES, "--learning-rate", "0.01")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, OptimizerConfig(0.001, 0.9)),
        (
            {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "batch_size": 4},
            OptimizerConfig(0.001, 0.5, True, 0.1, 4),
        ),
        (
            {"optimizer": "adamw", "betas": (0.8, 0.9), "eps": 1e-6, "clip_norm": 2.0},
            OptimizerConfig(0.001, name="adamw", betas=(0.8, 0.9), eps=1e-6, clip_norm=2.0),
        ),
        (
            {"optimizer": "rmsprop", "weight_ema": 0.9},
            OptimizerConfig(0.001, name="rmsprop", weight_ema=0.9),
        ),
        (
            {"optimizer": "lion", "learning_rate": 0.1, "sampling": "replacement"},
            OptimizerConfig(0.1, name="lion", sampling="replacement"),
        ),
    ],
)
def test_flags_are_a_setting(flags, expected):
    assert optimizer_of(Predict(**flags)) == expected


def test_a_warm_up_comes_before_any_schedule():
    options = Predict(steps=6, warmup_steps=2, learning_rate=0.4, schedule="linear")
    np.testing.assert_allclose(
        optimizer_of(options).learning_rates(6), [0.0, 0.2, 0.4, 0.3, 0.2, 0.1], rtol=1e-6
    )


def test_a_chain_of_the_users_own_is_what_a_setting_has(tmp_path):
    file = chain_file(tmp_path, "return optax.sgd(optax.linear_schedule(1.0, 0.0, num_steps))")
    found = optimizer_of(Predict(optimizer=file, steps=4, batch_size=3))
    assert (found.learning_rate, found.batch_size, found.is_sgd) == (1.0, 3, False)
    chain, params = found.chain(4), {"w": jnp.ones(2)}
    _, state = chain.update(params, chain.init(params), params)
    updates, _ = chain.update(params, state, params)
    np.testing.assert_allclose(updates["w"], [-0.75, -0.75])
    assert optimizer_of(Predict(optimizer=file, learning_rate=0.5)).learning_rate == 0.5


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ({}, {"name": "sgd", "momentum": 0.9, "betas": None, "eps": None, "clip_norm": None}),
        (
            {"optimizer": "adam", "clip_norm": 2.0, "warmup_steps": 3},
            {
                "name": "adam",
                "learning_rate": 0.001,
                "warmup_steps": 3,
                "momentum": 0.0,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "clip_norm": 2.0,
            },
        ),
        ({"optimizer": "lion"}, {"betas": [0.9, 0.99], "eps": None}),
    ],
)
def test_the_report_has_the_numbers_of_the_optimizer(flags, numbers):
    options = Predict(**flags)
    part = optimizer_part(optimizer_of(options), options.steps) | optimizer_flags(options)
    assert {name: part[name] for name in numbers} == numbers


@pytest.mark.slow
def test_epochs_are_steps_of_this_data_and_batch(tiny_run):
    flags = [*BATCHES, "--steps", "150", "--schedule", "linear"]
    report = tiny_run("predict", *flags, "--epochs", "2.5")
    assert report["optimizer"]["steps"] == 5  # 8 samples, 4 a step
    assert report["prediction"]["steps"][-1] == 5


def test_a_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith(f"ntk-tt {ntk_tt.__version__}, JAX ")


def test_predict_verify_and_the_library_agree_to_the_last_digit(
    tiny_run, tiny_weights, plain, tmp_path
):
    """Whether a run is really trained beside it or not, and whoever asks, a prediction is one."""
    predicted = tiny_run("predict", *BATCHES, "--learning-rate", "0.01")
    task = ntk_tt.load_task("digits", num_classes=2, per_class=4, image_size=16)
    model = ntk_tt.load_model("tiny", weights=str(tiny_weights), num_classes=2, image_size=16)
    report = ntk_tt.predict_training_time(
        model,
        model.preprocess(task.images),
        task.labels,
        OptimizerConfig(0.01, momentum=0.9, batch_size=4),
        4,
        method="replay",
    )
    report.write_json(tmp_path / "library.json")
    assert plain["truth"] is not None
    assert plain["prediction"] == predicted["prediction"]
    for times in ("times", "times_low", "times_high", "intervals"):  # a level of the command's own
        del predicted["prediction"][times]["loss_below"]["1"]
    library = strict(tmp_path / "library.json")
    assert library["prediction"] == predicted["prediction"]
    for other in (library, plain):
        for name in ("stability_margin", "largest_safe_learning_rate", "trust", "reason"):
            assert other["verdict"][name] == predicted["verdict"][name]


@pytest.mark.slow
def test_predict_does_not_train(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(
        commands, "finetune", lambda *_, **__: pytest.fail("predict trained the network")
    )
    report = tiny_run("predict", "--price-per-hour", "36")
    check_report(report, num_steps=4, with_truth=False)
    assert report["optimizer"]["batch_size"] is None
    assert report["prediction"]["steps"] == [0, 1, 2, 3, 4]
    assert report["prediction"]["num_seeds"] == 1  # the full batch has no noise
    assert report["cost"]["price"] == pytest.approx(report["cost"]["train_seconds"] / 100)
    out = capsys.readouterr().out
    assert "off by" not in out
    assert "would take about" in out


@pytest.mark.slow_but("replay")
@pytest.mark.parametrize(
    "method", ["replay", "ode", "sde", "sde-diagonal", "sde-diagonal-constant"]
)
def test_every_method_predicts(method, tiny_run, plain):
    report = tiny_run("predict", *BATCHES, "--learning-rate", "0.01", "--method", method)
    check_report(report, num_steps=4, with_truth=False)
    prediction = report["prediction"]
    assert prediction["method"] == method
    assert prediction["num_seeds"] == (1 if method == "ode" else 5)
    assert prediction["loss"][0] == pytest.approx(plain["prediction"]["loss"][0], rel=1e-5)
    # a handful of noisy steps
    assert prediction["loss"][-1] == pytest.approx(plain["prediction"]["loss"][-1], rel=0.1)
    # the only one of these that is calibrated
    assert (prediction["intervals"] is not None) == (method == "replay")
    assert (prediction["loss"] == plain["prediction"]["loss"]) == (method == "replay")


@pytest.mark.slow
def test_a_real_head_curvature_and_observed_steps(tiny_run, plain, capsys):
    report = tiny_run(
        "verify", *BATCHES, "--learning-rate", "0.01", "--method", "curvature", "--observe", "2"
    )
    check_report(report, num_steps=4, with_truth=True)
    prediction, task = report["prediction"], report["task"]
    assert prediction["real_steps"] == 2
    # observed, in the order of the truth
    assert prediction["loss"][:3] == pytest.approx(report["truth"]["loss"][:3], rel=1e-5)
    assert prediction["loss"][-1] == pytest.approx(plain["prediction"]["loss"][-1], rel=0.1)
    assert task["num_directions"] >= 1
    assert 0 <= task["directions_dropped"] < 1
    assert task["kernel_growth"] > 0
    assert report["cost"]["observed_seconds"] > 0
    assert set(prediction["intervals"]) == {"loss_below", "error_below"}
    for family, levels in prediction["intervals"].items():
        assert set(levels) == set(prediction["times"][family])
        for level in levels.values():
            assert 0 <= level["probability"] <= 1
            assert level["low"] is None or level["high"] is None or level["low"] <= level["high"]
    assert prediction["slowdown"] == slowdown("curvature", report["verdict"]["stability_margin"])
    assert "90 % interval" in capsys.readouterr().out


@pytest.mark.slow
def test_another_optimizer_is_predicted_and_trained_but_not_vouched_for(tiny_run, capsys):
    flags = ("--learning-rate", "0.01", "--method", "head", "--optimizer", "adamw")
    report = tiny_run("verify", *BATCHES, *flags)
    prediction, truth = report["prediction"], report["truth"]
    assert prediction["loss"][0] == pytest.approx(truth["loss"][0], rel=1e-3)
    fall = truth["loss"][0] - truth["loss"][-1]
    assert fall > 0.01 * truth["loss"][0]
    assert prediction["loss"][-1] == pytest.approx(truth["loss"][-1], abs=0.5 * fall)
    assert prediction["intervals"] is None
    assert prediction["slowdown"] == 1
    assert report["verdict"]["trust"] in ("low", "none")
    assert "runs with SGD" in report["verdict"]["reason"]
    assert "those known come from runs with SGD" in capsys.readouterr().out


def test_near_the_bound_the_times_are_longer_but_for_the_real_steps(unchecked):
    steps = np.arange(41)
    run = Trajectory(steps, np.exp(-steps / 10), np.linspace(1, 0, 41))
    recording = Recording(40, 1, (0.5,), (0.5,), 1)
    optimizer = OptimizerConfig(0.1)
    before = Predicted(None, summarize_runs([run], 10, **recording.of_times), None, 4, {})
    assert as_slow_as(before, "curvature", 100.0, recording, optimizer, 8) is before
    after = as_slow_as(before, "curvature", 0.5, recording, optimizer, 8)
    assert after.slowdown == slowdown("curvature", 0.5) > 1
    np.testing.assert_array_equal(after.prediction.loss[:5], before.prediction.loss[:5])
    early, late = (each.prediction.times["loss_below"]["0.5"] for each in (before, after))
    assert late == pytest.approx(4 + (10 * np.log(2) - 4) * after.slowdown, abs=1)
    assert early < late


@pytest.mark.slow
def test_real_steps_first(tiny_run, plain):
    report = tiny_run(
        "predict", *BATCHES, "--learning-rate", "0.01", "--method", "one-shot", "--first-steps", "1"
    )
    check_report(report, num_steps=4, with_truth=False)
    assert report["prediction"]["real_steps"] == 1
    assert report["prediction"]["loss"][-1] == pytest.approx(
        plain["prediction"]["loss"][-1], rel=0.1
    )


FULL_BATCH = ("verify", "--learning-rate", "0.003", "--projections", "exact")


@pytest.fixture(scope="module")
def plain_full_batch(tiny_run) -> dict:
    return tiny_run(*FULL_BATCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        ["--nesterov"],
        ["--schedule", "cosine"],
        ["--loss", "mse"],
        ["--weight-decay", "0.5"],
        ["--warmup-steps", "2"],
    ],
    ids=lambda setting: setting[0],
)
def test_every_setting_reaches_prediction_and_truth(setting, tiny_run, plain_full_batch):
    report = tiny_run(*FULL_BATCH, *setting)
    check_report(report, num_steps=4, with_truth=True)
    predicted, real = (np.asarray(report[name]["loss"]) for name in ("prediction", "truth"))
    fall = real[0] - real[-1]
    assert fall > 5e-4
    # steps so small that the network is its linearisation
    np.testing.assert_allclose(predicted, real, atol=0.1 * fall, rtol=0)
    for name in ("prediction", "truth"):
        assert abs(report[name]["loss"][-1] - plain_full_batch[name]["loss"][-1]) > 0.15 * fall


@pytest.mark.slow
def test_trained_batch_norm_changes_the_truth_only(tiny_run, plain):
    report = tiny_run("verify", *BATCHES, "--learning-rate", "0.01", "--batch-norm", "train")
    check_report(report, num_steps=4, with_truth=True)
    assert report["task"]["batch_norm"] == "train"
    assert report["prediction"]["loss"] == plain["prediction"]["loss"]
    assert report["truth"]["loss"][0] == pytest.approx(plain["truth"]["loss"][0], rel=1e-4)
    # a hundred times the rounding
    assert abs(report["truth"]["loss"][-1] - plain["truth"]["loss"][-1]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learning_rate", "loss", "diverges"),
    [
        ("2", "ce", False),
        ("1e30", "mse", True),
        ("1000", "ce", True),
    ],
)
def test_a_rate_past_the_stability_bound_has_no_trust(
    learning_rate, loss, diverges, tiny_run, tmp_path, capsys
):
    report = tiny_run(
        "verify",
        *BATCHES,
        "--learning-rate",
        learning_rate,
        "--loss",
        loss,
        "--plot",
        str(tmp_path / "figure.png"),
    )
    check_report(report, num_steps=4, with_truth=True)
    assert report["verdict"]["trust"] == "none"
    assert 0 < report["verdict"]["stability_margin"] < 1
    assert "unstable" in report["verdict"]["reason"]
    assert (
        (report["truth"]["diverged_at"] is not None)
        == (None in report["truth"]["loss"])
        == diverges
    )
    assert Image.open(tmp_path / "figure.png").size[0] > 500
    assert "trust: none" in capsys.readouterr().out


# results that cannot be saved


@pytest.mark.slow_but("predict")
@pytest.mark.parametrize("command", ["predict", "verify"])
def test_what_cannot_be_saved_is_printed_named_and_cleaned_up(command, tiny_run, tmp_path, capsys):
    """Both files fail, an older report stays, and the training that follows is not lost either."""
    report, figure = tmp_path / "report.json", tmp_path / "figure.png"
    with full_disk(2048), pytest.raises(SystemExit) as exit_:
        tiny_run(command, *BATCHES, "--plot", str(figure), report=report)
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert "trust: " in out
    assert ("in truth" in " ".join(out.split())) == (command == "verify")
    last = err.splitlines()[-1]
    assert last.startswith(
        f"ntk-tt: cannot write '{report}' (File too large); cannot write '{figure}' (File too "
        "large); the result is printed above"
    )
    # a training that takes days should know before
    assert err.count("\n") == (2 if command == "verify" else 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a folder by now", "gone", "a pipe without a reader", "full"])
def test_a_path_that_became_bad_meanwhile(kind, tiny_run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    report = Path("/dev/full") if kind == "full" else folder / "report.json"
    figure = folder / "figure.png"
    real = commands.predict_from

    def meanwhile(*arguments, **more):
        if kind == "a folder by now":
            report.mkdir()
        elif kind == "gone":
            folder.rmdir()
            folder.write_text("")
        elif kind == "a pipe without a reader":
            os.mkfifo(report)
        return real(*arguments, **more)

    monkeypatch.setattr(commands, "predict_from", meanwhile)
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "predict",
                "--model",
                "tiny",
                "--weights",
                "random",
                *TINY_TASK,
                "--json",
                str(report),
                "--plot",
                str(figure),
            ]
        )
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert "trust: " in out
    assert f"cannot write '{report}'" in err
    assert err.count("\n") == 1
    # one failure does not keep the other from being written
    assert figure.exists() == (kind != "gone")
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_loses_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("ntk_tt.report.training_time.plot_report", fail)
    monkeypatch.setenv("NTK_TT_TRACEBACK", "")
    with pytest.raises(SystemExit) as exit_:
        tiny_run("predict", "--plot", str(tmp_path / "figure.png"), report=tmp_path / "report.json")
    assert exit_.value.code == 1
    assert (
        "figure.png' (RuntimeError: no font); the result is printed above"
        in capsys.readouterr().err
    )
    check_report(strict(tmp_path / "report.json"), num_steps=4, with_truth=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [(BrokenPipeError(32, "Broken pipe"), 141), (OSError(28, "No space left on device"), 1)],
)
def test_a_closed_or_full_output_does_not_keep_the_report_from_being_written(
    error, code, tiny_run, tmp_path, monkeypatch, capsys
):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr("sys.stdout", Broken())
    with pytest.raises(SystemExit) as exit_:
        tiny_run("predict", "--plot", str(tmp_path / "figure.png"), report=tmp_path / "report.json")
    assert exit_.value.code == code
    check_report(strict(tmp_path / "report.json"), num_steps=4, with_truth=False)
    assert (tmp_path / "figure.png").exists()
    assert capsys.readouterr().err == (
        ""
        if code == 141
        else "ntk-tt: cannot write to standard output: No space left on device; files that were "
        "asked for are written\n"
    )


@pytest.mark.slow
def test_names_with_dollar_signs_can_be_drawn(tiny_run, tmp_path):
    """They are no formulas."""
    source = write_folder(tmp_path / r"a$\frac{$_^b", {"x": 4, "y": 4})
    tiny_run("predict", "--data", source, "--plot", str(tmp_path / "figure.svg"))
    assert (tmp_path / "figure.svg").stat().st_size > 1000


# interruptions


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_training_leaves_the_prediction(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "finetune", interrupt)
    with pytest.raises(SystemExit) as exit_:
        tiny_run("verify", *BATCHES, report=tmp_path / "report.json")
    assert exit_.value.code == 130
    report = strict(tmp_path / "report.json")
    check_report(report, num_steps=4, with_truth=False)
    out, err = capsys.readouterr()
    assert "trust: " in out  # the prediction is printed too
    assert "off by" not in out
    assert err == f"ntk-tt: interrupted; the prediction is in {tmp_path / 'report.json'}\n"


def test_an_earlier_interruption_keeps_the_older_report_and_says_nothing_of_it(
    tmp_path, monkeypatch, capsys
):
    old = tmp_path / "report.json"
    old.write_text('{"older": true}')
    monkeypatch.setattr(commands, "load", interrupt)
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *TINY_TASK, "--json", str(old)])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "ntk-tt: interrupted\n"
    assert strict(old) == {"older": True}


def test_images_are_of_the_networks_own_size():
    assert Predict().side == 32
    assert Predict(model="resnet18").side == 224
    assert Predict(model="resnet18", image_size=64).side == 64
    assert Predict(model="mine.py:factory").side == 32
