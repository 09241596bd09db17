"""Compilation kept apart from running; reports that are strict JSON and whole."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.report import write_json
from ntk_tt.stopwatch import Stopwatch, _union


def test_stopwatch_takes_compilation_out():
    @jax.jit
    def function(x):
        for _ in range(60):
            x = jnp.sin(x @ x) + jax.jit(jnp.cos)(x)
        return x.sum()

    x = jnp.ones((8, 8))
    with Stopwatch() as first:
        function(x).block_until_ready()
        time.sleep(0.2)
    with Stopwatch() as second:
        function(x).block_until_ready()
        time.sleep(0.2)
    assert first.compile_seconds > 0.05
    assert second.compile_seconds == 0.0
    assert 0.2 <= second.seconds < 0.4
    assert 0.2 <= first.seconds < 0.2 + first.compile_seconds


def test_nested_and_overlapping_intervals_count_once():
    assert _union([(0.0, 1.0), (0.2, 0.4), (0.9, 1.5), (2.0, 3.0)]) == 2.5
    assert _union([]) == 0.0


def test_report_is_strict_json_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_json(path, {"loss": [np.float32(0.5), np.nan, float("inf")], "steps": (np.int64(3),), "times": {0.5: None}})
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert read == {"loss": [0.5, None, None], "steps": [3], "times": {"0.5": None}}
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == read
