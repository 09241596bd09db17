"""A small network's passes, made or found again."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_tt.features.kept_pass import KeptPass, Record, complete_rows
from ntk_tt.features.parameter_sample import ParameterSample
from ntk_tt.features.sampled_pass import Looked
from ntk_tt.features.store import FeatureStore
from ntk_tt.models.linear_head import Head
from ntk_tt.runtime.memory import available_bytes
from ntk_tt.runtime.progress import Progress


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the samples are looked at, as a few of them say.

    Attributes:
        head: the network's linear head; None where there is none, or it is not kept.
        sample: of the backbone's parameters.
        directions: U (N, k, F).
        dropped: share of the pulls' norm that U leaves out.
        num_entries: D' that was asked of the sample.
        wanted: D' where memory does not matter.
    """

    head: Head | None
    sample: ParameterSample
    directions: Float[np.ndarray, "n k f"]
    dropped: float
    num_entries: int
    wanted: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing had to give way to memory."""
        return self.num_entries >= self.wanted


def planned(kept: KeptPass | None, new: Callable[[], Plan]) -> Plan:
    """The plan that was kept, else a new one, which is kept where that is wanted and where it does
    not depend on the memory that is free now.
    """
    if kept is None:
        return new()
    record = kept.record(kept.first)
    if record is not None:
        return _plan_of(record)
    plan = new()
    if kept.writes and plan.is_whole:
        kept.keep(kept.first, _record_of(plan))
    return plan


def looked_at_all(
    kept: KeptPass | None,
    plan: Plan,
    look: Callable[[slice, Progress], Looked],
    check: Callable[[Looked], None],
    progress: Progress,
) -> Looked:
    """Outputs and derivatives of all samples: found, or looked at and kept.

    Args:
        look: the pass over some samples.
        check: of what all of them gave; not called for what was kept, which was checked before.
    """
    num_samples = len(plan.directions)
    store = None if kept is None or not plan.is_whole else _store_of(kept, plan)
    is_new = store is None or not store.complete
    if store is None or kept is None or (is_new and not kept.writes):
        found = look(slice(0, num_samples), progress)
        check(found)
        return found

    def rows(taken: slice, progress: Progress) -> Float[Array, "b k w"]:
        return _packed(look(taken, progress))

    whole = complete_rows(store, rows, progress)
    found = _unpacked(whole, jnp.asarray(plan.directions))
    if is_new:
        check(found)
    return found


def found_in(kept: KeptPass, points: int) -> FeatureStore | None:
    """The store of the first pass where it is whole and fits into memory, with what is kept of so
    many points.
    """
    record = kept.record(kept.first)
    if record is None:
        return None
    plan = _plan_of(record)
    needed = points * plan.directions[..., 0].size * plan.sample.num_projections
    if needed * plan.directions.itemsize > available_bytes():
        return None
    store = _store_of(kept, plan)
    return store if store.complete else None


def _store_of(kept: KeptPass, plan: Plan) -> FeatureStore:
    """Of the first pass: Ψ, and behind its rows the outputs."""
    num_samples, rows, width = plan.directions.shape
    columns = plan.sample.num_projections + -(-width // rows)
    return kept.store(kept.first, num_samples, rows, columns, plan.directions.dtype)


def _packed(found: Looked) -> Float[Array, "b k w"]:
    count, rows, _ = found.jacobian.shape
    width = -(-found.outputs.shape[1] // rows)
    outputs = jnp.pad(found.outputs, ((0, 0), (0, rows * width - found.outputs.shape[1])))
    return jnp.concatenate([found.jacobian, outputs.reshape(count, rows, width)], axis=2)


def _unpacked(whole: Float[Array, "n k w"], directions: Float[Array, "n k f"]) -> Looked:
    count, rows, width = directions.shape
    behind = -(-width // rows)
    outputs = whole[:, :, -behind:].reshape(count, -1)[:, :width]
    return Looked(outputs, directions, whole[:, :, :-behind])


def _record_of(plan: Plan) -> Record:
    head = None if plan.head is None else dataclasses.astuple(plan.head)
    facts = {
        "names": list(plan.sample.entries),
        "head": head,
        "dropped": plan.dropped,
        "num_entries": plan.num_entries,
        "wanted": plan.wanted,
    }
    arrays: dict[str, Any] = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "directions": plan.directions,
    }
    for number, name in enumerate(plan.sample.entries):
        arrays[f"entries {number}"] = plan.sample.entries[name]
        arrays[f"weights {number}"] = plan.sample.weights[name]
    return arrays


def _plan_of(record: Record) -> Plan:
    facts = json.loads(record["facts"].tobytes())
    entries, weights = (
        {name: record[f"{what} {number}"] for number, name in enumerate(facts["names"])}
        for what in ("entries", "weights")
    )
    sample = ParameterSample(
        entries=entries, weights=weights, num_projections=sum(map(len, entries.values()))
    )
    head = None if facts["head"] is None else Head(*facts["head"])
    return Plan(
        head,
        sample,
        record["directions"],
        facts["dropped"],
        facts["num_entries"],
        facts["wanted"],
    )
