"""Compilation kept apart from running; reports that are strict JSON and whole."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.report.document import write_json
from ntk_tt.runtime.stopwatch import Stopwatch, _union


def test_stopwatch_hears_of_compilation_and_of_nothing_else():
    """JAX tells of tracing and compiling under names of its own: a first call has some, a second
    none.
    """
    function, x = jax.jit(lambda x: jnp.sin(x @ x) + jax.jit(jnp.cos)(x)), jnp.ones((8, 8))
    with Stopwatch() as first:
        function(x).block_until_ready()
    with Stopwatch() as second:
        function(x).block_until_ready()
    assert first.compile_seconds > 0
    assert second.compile_seconds == 0
    assert first.seconds >= 0
    assert second.seconds > 0


def test_stopwatch_takes_compilation_out(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(
        "ntk_tt.runtime.stopwatch.time",
        SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 2 * now[0]),
    )
    with Stopwatch() as outer:
        now[0] += 5
        with Stopwatch() as inner:
            now[0] += 2
            Stopwatch._hear("/jax/core/compile/jaxpr_trace_duration", 1.5)
            # began before the inner one
            Stopwatch._hear("/jax/core/compile/backend_compile_duration", 6.0)
            Stopwatch._hear("/jax/checkpoint/write/durable_duration", 1.0)
            now[0] += 1
        now[0] += 4
    assert (inner.compile_seconds, inner.seconds) == (2, 1)
    assert (outer.compile_seconds, outer.seconds) == (6, 6)


def test_nested_and_overlapping_intervals_count_once():
    assert _union([(0.0, 1.0), (0.2, 0.4), (0.9, 1.5), (2.0, 3.0)]) == 2.5
    assert _union([]) == 0.0


def test_report_is_strict_json_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_json(
        path,
        {
            "loss": [np.float32(0.5), np.nan, float("inf")],
            "steps": (np.int64(3),),
            "times": {0.5: None},
        },
    )
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert read == {"loss": [0.5, None, None], "steps": [3], "times": {"0.5": None}}
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == read
