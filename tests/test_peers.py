"""The benchmark's networks compute what their checkpoints' authors' do, and its driver tells an
answer from none.
"""

import argparse
import time

import jax
import numpy as np
import pytest

from benchmarks import side_by_side
from benchmarks.peers.common import Arguments, first_call_mark, measure, normalised
from benchmarks.peers.jax_functional import _convolution, load


@pytest.mark.slow_but("*-resnet20-32")
@pytest.mark.parametrize(("name", "side"), [("resnet20", 32), ("resnet18", 64)])
@pytest.mark.parametrize("convolutions", ["im2col", "native"])
def test_logits_are_those_of_pytorch(weights_root, monkeypatch, name, side, convolutions):
    monkeypatch.setenv("NTK_TT_WEIGHTS", str(weights_root))
    reference = np.load(weights_root / "reference.npz")
    apply, params = load(name, None, convolutions=convolutions)
    logits = jax.jit(apply)(params, normalised(reference[f"images{side}"][:2]))
    np.testing.assert_allclose(logits, reference[f"{name}_logits"][:2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow_but("1-3", "2-4")
@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_im2col_is_the_same_convolution(side, stride):
    """With its derivatives, on the small maps that it takes."""
    generator = np.random.default_rng(side)
    x, kernel = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, side, side, 3), (3, 3, 3, 4))
    )
    results = []
    for convolutions in ("im2col", "native"):

        @jax.jit
        def derivatives(x, kernel, convolutions=convolutions):
            y, pullback = jax.vjp(
                lambda x, kernel: _convolution(x, kernel, stride, convolutions), x, kernel
            )
            return y, *pullback(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        results.append(derivatives(x, kernel))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def _driven(limit):
    given = argparse.Namespace(num_outputs=2, repeats=1, limit=limit, seed=0, convolutions="im2col")
    return side_by_side._run("vmap_jacrev", "resnet20", 1, given)


def test_driver_stops_what_does_not_answer():
    assert _driven(0.2) == {"none": "none in 0.2 s"}


def test_driver_says_why_a_peer_failed(monkeypatch, tmp_path):
    monkeypatch.setenv("NTK_TT_WEIGHTS", str(tmp_path))
    answer = _driven(100.0)
    assert answer["none"].startswith("failed with status 1: weights: there is no ")
    assert "set NTK_TT_WEIGHTS" in answer["none"]


@pytest.mark.parametrize(
    ("repeats", "limit", "calls"), [(3, np.inf, 3), (3, 0.0, 1), (0, np.inf, 1)]
)
def test_first_call_is_kept_apart_and_the_limit_ends_repeats(tmp_path, repeats, limit, calls):
    given = Arguments(
        "resnet20", 1, 2, repeats, limit, 0, "im2col", "structured", tmp_path / "report.json"
    )
    durations = iter([0.3, *[0.05] * 5])
    result, clocks = measure(lambda: time.sleep(next(durations)) or "result", given)
    assert result == "result"
    assert clocks["repeats"] == calls
    assert 0.05 <= clocks["seconds"] < 0.2
    assert clocks["processor_seconds"] < 0.05  # it slept
    assert clocks["compile_seconds"] == pytest.approx(
        clocks["first_call_seconds"] - clocks["seconds"]
    )
    assert first_call_mark(given.out).exists()


def test_table_says_how_far_and_how_dear(capsys):
    peer = {
        "processor_seconds": 3.0,
        "seconds": 2.0,
        "compile_seconds": 1.0,
        "peak_bytes": 2e9,
        "frobenius_norm": 10.0,
        "entries": {"0,0": -8.0, "0,1": 1.0},
    }
    floor = {
        "forward": {"processor_seconds": 0.1, "seconds": 0.1},
        "forward_and_vjp": {"processor_seconds": 0.2, "seconds": 0.2},
        "floors": {
            "processor_seconds": {"vjps": 1.0, "contrasts": 0.8},
            "seconds": {"vjps": 0.6, "contrasts": 0.5},
        },
        "gemm_at_peak": {"processor_seconds": 0.5, "seconds": 0.3},
        "num_params": 12345,
        "gemm_flops_per_second": 1e11,
        "copy_bytes_per_second": 1e10,
    }
    rows = {
        "floor": floor,
        "vmap_jacrev": peer | {"processor_seconds": 6.0, "entries": {"0,0": -8.0, "0,1": 1.08}},
        "torch_func": {"none": "none in 120 s"},
        "ours": peer,
    }
    side_by_side._print_table("resnet20", 7, 5, rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-7:] for line in lines if line.startswith("vmap(jacrev)")] == [
        ["6.00", "2.00", "4.00", "1.00", "1.0", "2.00", "1.0e-02"]
    ]
    assert [line.split()[-6:] for line in lines if line.startswith("ntk_tt")] == [
        ["3.00", "2.00", "2.00", "0.50", "1.0", "2.00"]
    ]
    assert [line.split()[-4:] for line in lines if line.startswith("floor")] == [
        ["1.50", "0.90", "1.00", "0.25"]
    ]
    assert any(line.startswith("torch.func") and line.endswith(" none in 120 s") for line in lines)
    side_by_side._print_table("resnet20", 7, 5, {"ours": peer})  # alone, it has no ratios
    assert capsys.readouterr().out.splitlines()[-1].split()[-4:] == ["3.00", "2.00", "1.0", "2.00"]
