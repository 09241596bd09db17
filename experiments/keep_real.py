"""Puts the real runs of a committed `accuracy` result into the cache, so that only its predictions
are made anew.

    python -m experiments.keep_real
    python -m experiments.run accuracy

Takes minutes: a few steps of each run are timed, so that its seconds are those of this machine;
needs $NTK_TT_DATA and $NTK_TT_WEIGHTS. What training gives does not depend on how it is predicted;
whoever changes `ntk_tt.training` trains anew.
"""

import json
from typing import Any

import ntk_tt
from experiments.common.experiment import result_path
from experiments.common.tasks import TaskConfig, load, run_path, timed
from experiments.studies.accuracy import NEARBY
from ntk_tt.report.document import environment, write_json

TIMED = 12  # steps


def main() -> None:
    document = json.loads(result_path("accuracy", "cpu").read_text())
    every = document["config"]["record_every"]
    for run in document["results"]["runs"]:
        kept(run, every, document["environment"]["date"])


def kept(run: dict[str, Any], record_every: int, date: str) -> None:
    """Writes the real runs of one record."""
    task = TaskConfig(
        **{name: run[name] for name in ("network", "data", "classes", "per_class", "seed")},
        image_size=run["image_size"],
    )
    setting = {name: run[name] for name in ("learning_rate", "momentum", "batch_size")}
    nearby = setting | {"learning_rate": float(f"{NEARBY * run['learning_rate']:.3g}")}
    others = [
        (setting, 1 + order) if run["batch_size"] else (nearby, 0)
        for order in range(len(run["other_reals"]))
    ]
    curves = [run["curves"]["real"], *run["other_reals"]]
    steps = 2 * run["num_steps"]
    costs = None
    for index, ((of, order), curve) in enumerate(zip([(setting, 0), *others], curves, strict=True)):
        path, described = run_path(task, of, steps, seed=order, record_every=record_every)
        if path.exists():
            continue
        costs = costs or timed(load(task), ntk_tt.OptimizerConfig(**setting), TIMED)
        write_json(
            path,
            {
                **described,
                **curve,
                "seconds": costs[0] * steps / TIMED,
                "processor_seconds": costs[1] * steps / TIMED,
                "diverged_at": None if index else run["diverged_at"],
                "environment": environment(order) | {"date": date},
            },
        )


if __name__ == "__main__":
    main()
