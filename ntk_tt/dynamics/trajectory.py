"""What every solver returns: a training curve."""

import equinox as eqx
import numpy as np


class Trajectory(eqx.Module):
    """A training curve on the whole training set.

    Attributes:
        steps: (S,) optimiser steps taken at each record, from 0 to T.
        loss, error: (S,) mean loss and error rate there; NaN or infinity where the dynamics
            diverged.
        logits: (S, N, C), only where asked for.
        states: what the steps carry at a handful of points on the way, steps 0 and T among them,
            of a problem whose kernel changes; what `ntk_tt.prediction.assess` goes by.
        validation_loss, validation_error: (S,) of samples that are not trained on, where there are
            some.
    """

    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    logits: np.ndarray | None = None
    states: tuple | None = None
    validation_loss: np.ndarray | None = None
    validation_error: np.ndarray | None = None


def record_steps(num_steps: int, record_every: int) -> np.ndarray:
    """0, k, 2k, …, and num_steps itself."""
    if record_every < 1:
        raise ValueError(f"record_every: must be at least 1, got {record_every}")
    return np.unique(np.append(np.arange(0, num_steps, record_every), num_steps))
