"""All experiments: the paper's figures and tables, in its order, then ours."""

from typing import Any

from experiments.common.experiment import Experiment
from experiments.paper import (
    batchnorm,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7,
    fig8,
    fig9,
    fig10,
    reply,
    tab1,
    tab2,
)
from experiments.studies import accuracy, adamw, baselines, causes, curvature, sharpening, sweep

PAPER = (fig1, fig2, fig3, fig4, tab1, tab2, fig5, fig6, fig7, fig8, fig9, fig10, reply, batchnorm)
STUDIES = (baselines, causes, accuracy, adamw, curvature, sharpening, sweep)

EXPERIMENTS: dict[str, Experiment[Any]] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (*PAPER, *STUDIES)
}


def find(name: str) -> Experiment[Any]:
    """The experiment of a name.

    Raises:
        ValueError: there is none; it says which there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name: there is no experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
