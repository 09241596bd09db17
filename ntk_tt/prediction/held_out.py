"""Samples of a task that are not trained on: a share of it, or of another split."""

from collections.abc import Callable, Sequence

import numpy as np

from ntk_tt.data import Task, UpTo

_PER_CLASS, _IN_ALL = 100, 400  # a few hundred tell a loss to a few per cent


def read_validation(text: str) -> float | str:
    """A share, such as `0.2` or `20%`, or the name of a split.

    Raises:
        ValueError: a share that does not lie between 0 and 1.
    """
    text = text.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return text
    if not 0 < share < 1:
        raise ValueError(
            f"validation: a share lies between 0 and 1, such as 0.2, got {text!r}; or give the "
            "name of a split"
        )
    return share


def hold_out(
    task: Task,
    validation: float | str,
    seed: int,
    of_split: Callable[[str, Sequence[str], UpTo], Task],
) -> tuple[Task, Task]:
    """What is trained on, and what is not.

    Args:
        task: of which a share of each class is held out, at random; with a split it stays whole.
        validation: see `read_validation`.
        seed: of the choice.
        of_split: loads some images of these classes of a split.

    Raises:
        ValueError: a class with too few images to hold some out.
    """
    if isinstance(validation, str):
        return task, of_split(validation, task.class_names, UpTo(_PER_CLASS, _IN_ALL))
    rng = np.random.default_rng([seed, 1])
    held = np.zeros(len(task.labels), bool)
    for label, name in enumerate(task.class_names):
        rows = np.flatnonzero(task.labels == label)
        count = max(1, round(validation * len(rows)))
        if count >= len(rows):
            raise ValueError(
                f"validation: class {name!r} has {len(rows)} of them, too few to hold out "
                f"{validation:.0%}; take a smaller share, or more images"
            )
        held[rng.choice(rows, count, replace=False)] = True
    return _of(task, ~held), _of(task, held)


def _of(task: Task, rows: np.ndarray) -> Task:
    """Some samples of a task."""
    return task._replace(images=task.images[rows], labels=task.labels[rows], asked_per_class=None)
