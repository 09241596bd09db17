"""The benchmark's networks compute what their checkpoints' authors' do, and its driver tells an answer from none."""

import argparse

import jax
import numpy as np
import pytest

from benchmarks import side_by_side
from benchmarks.peers.common import normalised
from benchmarks.peers.jax_functional import _convolution, load


@pytest.mark.parametrize(("name", "side"), [("resnet20", 32), ("resnet18", 64)])
@pytest.mark.parametrize("convolutions", ["im2col", "native"])
def test_logits_are_those_of_pytorch(weights_root, monkeypatch, name, side, convolutions):
    monkeypatch.setenv("NTK_TT_WEIGHTS", str(weights_root))
    reference = np.load(weights_root / "reference.npz")
    apply, params = load(name, None, convolutions=convolutions)
    logits = jax.jit(apply)(params, normalised(reference[f"images{side}"][:2]))
    np.testing.assert_allclose(logits, reference[f"{name}_logits"][:2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_im2col_is_the_same_convolution(side, stride):
    """With its derivatives, on the small maps that it takes."""
    generator = np.random.default_rng(side)
    x, kernel = (generator.normal(size=shape).astype(np.float32) for shape in ((2, side, side, 3), (3, 3, 3, 4)))
    results = []
    for convolutions in ("im2col", "native"):
        y, pullback = jax.vjp(lambda x, kernel, convolutions=convolutions: _convolution(x, kernel, stride, convolutions), x, kernel)
        results.append((y, *pullback(jax.numpy.cos(jax.numpy.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
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
