"""Table 2: the data sets as loaded.

    python -m experiments.run tab2 --scale cpu

Takes seconds. Expected: the paper's numbers for CIFAR-10, CIFAR-100, CUB-200 and Cars as far as
they are at hand whole, other sets in place of the rest.

Images, classes, mean images per class and imbalance (largest over smallest class) of the training
split on disk.
"""

import dataclasses
from typing import Any

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.experiment import Experiment, Scale
from experiments.common.tasks import REPORTING, TUNING, data_folder

CLAIM = "seven target data sets of 5 360 to 50 000 images"
PAPER = (
    "cifar10 50000/10, cifar100 50000/100, cub200 5994/200, stanfordcars 8144/196, aircraft "
    "6667/100, mit67 5360/67, minc 48875/23 (images/classes)"
)
SIZES = {
    "cifar10": (50000, 10),
    "cifar100": (50000, 100),
    "cub200": (5994, 200),
    "stanford_cars": (8144, 196),
    "aircraft": (6667, 100),
    "mit67": (5360, 67),
    "minc": (48875, 23),
}
"""Images and classes in the paper."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...]


SCALES: dict[Scale, Config] = {
    "tiny": Config(("digits",)),
    "cpu": Config(tuple(sorted({*TUNING, *REPORTING}))),
    "gpu": Config(tuple(sorted({*TUNING, *REPORTING}))),
}


def compute(config: Config) -> dict[str, Any]:
    rows = []
    for name in config.data:
        row = ntk_tt.data.describe_data(
            "digits" if name == "digits" else f"folder:{data_folder() / name}"
        )._asdict()
        rows.append(
            {
                **{
                    key: value
                    for key, value in row.items()
                    if key not in ("name", "source", "how", "notes")
                },
                "data": name,
            }
        )
    return {"runs": rows}


def claims(results: dict[str, Any]) -> list[Claim]:
    """Which of the paper's data sets are at hand with its numbers; no method predicts them."""
    rows = {row["data"]: (row["num_images"], row["num_classes"]) for row in results["runs"]}
    same = [rows.get(name) == size for name, size in SIZES.items()]
    return [
        counted(
            "the paper's data sets that are at hand whole", "images and classes", {"paper": same}
        )
    ]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Reproduced: all of the paper's sets have its numbers; partly: one or more has; else not."""
    same = [
        row["data"]
        for row in results["runs"]
        if SIZES.get(row["data"]) == (row["num_images"], row["num_classes"])
    ]
    other = [
        row["data"] for row in results["runs"] if row["data"] in SIZES and row["data"] not in same
    ]
    outcome = "; ".join(
        f"{row['data']}: {row['num_images']} images, {row['num_classes']} classes, "
        f"{row['mean_per_class']:.4g} a class, imbalance {row['imbalance']:.3g}"
        for row in results["runs"]
    )
    word = "reproduced" if len(same) == len(SIZES) else "partly" if same else "not reproduced"
    missing = sorted(set(SIZES) - {row["data"] for row in results["runs"]})
    return (
        outcome,
        f"{word}: as in the paper: {', '.join(same) or 'none'}; in other numbers: "
        f"{', '.join(other) or 'none'}; not at hand: {', '.join(missing)}",
    )


EXPERIMENT = Experiment(
    name="tab2",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    claims=claims,
)
