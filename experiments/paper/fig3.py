"""Figure 3: do gradients at the pre-trained weights separate classes, and samples by training time?

    python -m experiments.run fig3 --scale cpu

Takes about a minute on one core. Expected: gradients are no worse than features.

t-SNE of the first five principal components of each sample's gradients (of all outputs, projected)
and of the network's features, and of predicted trajectories of the logits (ODE). Numbers beside the
pictures: the silhouette by class in the five components; for trajectories that in the plane, and
the rank correlation of a sample's time to be fitted with the mean of its five neighbours' in the
plane. A sample is fitted when its predicted loss stays below half of the initial mean.
"""

import dataclasses
from typing import Any, cast

import numpy as np
import scipy.stats

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.comparison import prepare, prepare_ours
from experiments.common.experiment import Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import TaskConfig
from ntk_tt.kernels.operators import PrimalKernel

CLAIM = (
    "gradients separate the classes better than features; predicted trajectories cluster by "
    "class and by training time"
)
PAPER = "pictures only (3 classes of CIFAR-10)"
NUM_COMPONENTS, NUM_NEIGHBOURS = 5, 5
ALIKE = 0.5
"""Rank correlation of neighbours' times from which trajectories count as clustered by time."""


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    data: tuple[str, ...]
    num_steps: int = 150
    rate: float = 0.2
    """η over the largest stable one."""
    perplexity: float = 30


SCALES: dict[Scale, Config] = {
    "tiny": Config(TaskConfig(classes=3, per_class=6), ("digits",), num_steps=10, perplexity=4),
    "cpu": Config(TaskConfig(classes=3, per_class=40), ("cifar10", "scene15"), perplexity=20),
    "gpu": Config(
        TaskConfig("resnet18", classes=3, per_class=150, image_size=224), ("cifar10", "scene15")
    ),
}


def compute(config: Config) -> dict[str, Any]:
    return {
        "runs": [
            cluster(config, dataclasses.replace(config.task, data=data)) for data in config.data
        ]
    }


def principal_components(rows: np.ndarray) -> np.ndarray:
    """(N, d) -> (N, 5): centred, by the Gram matrix."""
    centred = rows - rows.mean(0)
    eigenvalues, vectors = np.linalg.eigh(centred @ centred.T)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0)))[:, ::-1][:, :NUM_COMPONENTS]


def cluster(config: Config, task: TaskConfig) -> dict[str, Any]:
    """Components, planes and their numbers on one data set."""
    from sklearn.metrics import silhouette_samples, silhouette_score

    prepared = prepare(task)
    (model, images, labels), problem = prepared.task, prepared.problem
    gradients = np.asarray(cast(PrimalKernel, prepared.primal.kernel).features)
    small = prepare_ours(task)[0].found.problem
    points = {
        "gradients": principal_components(gradients.reshape(len(gradients), -1)),
        "gradients_by_ours": principal_components(sampled_gradients(small)),
        "features": principal_components(np.asarray(model.features(model.params, images))),
    }
    rate = stable_rate(problem, config.rate)
    run = ntk_tt.dynamics.simulate(
        problem, ntk_tt.OptimizerConfig(rate), config.num_steps, method="ode", save_logits=True
    )
    by_ours = ntk_tt.dynamics.simulate(
        cast(Any, small), ntk_tt.OptimizerConfig(rate), config.num_steps, save_logits=True
    )
    logits = np.asarray(run.logits, np.float64)
    times = np.minimum(fitted_after(logits, labels), config.num_steps)
    planes = planes_of(config, task, points, logits)
    logits_of_ours = np.asarray(by_ours.logits, np.float64)
    times_by_ours = np.minimum(fitted_after(logits_of_ours, labels), config.num_steps)
    plane_by_ours = plane_of(config, task, trajectories(config, logits_of_ours))
    neighbours = nearest(planes["trajectories"])
    separation = silhouette_samples(points["gradients"], labels)
    record = {
        "task": dataclasses.asdict(task),
        "seed": task.seed,
        "num_samples": len(images),
        "learning_rate": rate,
        "momentum": 0.0,
        "batch_size": None,
        "num_steps": config.num_steps,
        "silhouette": {
            **{name: float(silhouette_score(each, labels)) for name, each in points.items()},
            "trajectories": float(silhouette_score(planes["trajectories"], labels)),
            "trajectories_by_ours": float(silhouette_score(plane_by_ours, labels)),
        },
        "silhouette_in_the_plane": {
            name: float(silhouette_score(each, labels)) for name, each in planes.items()
        },
        "neighbours_times": rank_correlation(times, times[neighbours].mean(1)),
        "neighbours_times_by_ours": rank_correlation(
            times_by_ours, times_by_ours[nearest(plane_by_ours)].mean(1)
        ),
        "separation_and_time": rank_correlation(np.asarray(separation), times),
        "planes": {name: np.round(each, 3).tolist() for name, each in planes.items()},
        "labels": labels.tolist(),
        "times": times.tolist(),
        "not_fitted": int((times == config.num_steps).sum()),
    }
    print(
        f"fig3: {task.data}: silhouettes {record['silhouette']}, neighbours' times "
        f"{record['neighbours_times']:.2f}",
        flush=True,
    )
    return record


def fitted_after(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The record from which on the loss of each sample stays below half of the mean at first."""
    losses = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) - (
        np.take_along_axis(logits, labels[None, :, None], 2)[..., 0] - logits.max(-1)
    )
    above = losses >= 0.5 * losses[0].mean()
    return np.where(above.any(0), len(above) - 1 - above[::-1].argmax(0), -1) + 1


def sampled_gradients(small: Any) -> np.ndarray:
    """(N, k·D') derivatives of each sample by the sampled parameters of the small network."""
    scaled = np.asarray(small.jacobian) * np.sqrt(np.asarray(small.weights))
    return scaled.reshape(len(scaled), -1)


def planes_of(
    config: Config, task: TaskConfig, points: dict[str, np.ndarray], logits: np.ndarray
) -> dict[str, np.ndarray]:
    """Points and trajectories of the logits, each embedded in a plane by t-SNE."""
    return {
        **{name: plane_of(config, task, each) for name, each in points.items()},
        "trajectories": plane_of(config, task, trajectories(config, logits)),
    }


def plane_of(config: Config, task: TaskConfig, rows: np.ndarray) -> np.ndarray:
    """(N, d) -> (N, 2), by t-SNE."""
    from sklearn.manifold import TSNE

    embedding = TSNE(perplexity=config.perplexity, random_state=task.seed, init="pca")
    return embedding.fit_transform(rows)


def trajectories(config: Config, logits: np.ndarray) -> np.ndarray:
    """(T + 1, N, C) -> a row a sample, of about 30 steps."""
    few = logits[:: max(1, config.num_steps // 30)].swapaxes(0, 1)
    return few.reshape(len(few), -1).astype(np.float32)


def nearest(plane: np.ndarray) -> np.ndarray:
    """The numbers of each sample's neighbours."""
    distances = np.linalg.norm(plane[:, None] - plane, axis=-1)
    return np.argsort(distances + np.diag(np.full(len(plane), np.inf)), 1)[:, :NUM_NEIGHBOURS]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; 0 where one of them does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.asarray(scipy.stats.spearmanr(one, other))[0])


def claims(results: dict[str, Any]) -> list[Claim]:
    """On which share of data sets; the paper's gradients are projected, ours are those by sampled
    parameters, and the trajectories are of the frozen kernel and of the small network.
    """
    runs = results["runs"]
    found: dict[str, dict[str, list[bool]]] = {}
    for method, suffix in (("paper", ""), ("ours", "_by_ours")):
        if "neighbours_times" + suffix not in runs[0]:
            continue
        silhouettes = [run["silhouette"] for run in runs]
        for text, holds in (
            (
                "data sets where gradients separate the classes better than features",
                [each["gradients" + suffix] > each["features"] for each in silhouettes],
            ),
            (
                "data sets where trajectories cluster by class",
                [each["trajectories" + suffix] > 0 for each in silhouettes],
            ),
            (
                "data sets where trajectories cluster by training time",
                [run["neighbours_times" + suffix] >= ALIKE for run in runs],
            ),
        ):
            found.setdefault(text, {})[method] = holds
    return [counted(text, "clusters", holds) for text, holds in found.items()]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Three claims, each on most data sets: gradients' silhouette above features'; trajectories'
    silhouette positive; neighbours' times correlate by ALIKE or more. Reproduced: all three;
    partly: some.
    """
    runs = results["runs"]
    better = sum(run["silhouette"]["gradients"] > run["silhouette"]["features"] for run in runs)
    by_class = sum(run["silhouette"]["trajectories"] > 0 for run in runs)
    by_time = sum(run["neighbours_times"] >= ALIKE for run in runs)
    met = sum(2 * count > len(runs) for count in (better, by_class, by_time))
    outcome = "; ".join(
        f"{run['task']['data']}: silhouette by class gradients "
        f"{run['silhouette']['gradients']:.2f}, features {run['silhouette']['features']:.2f}, "
        f"trajectories {run['silhouette']['trajectories']:.2f}; "
        f"times of neighbouring trajectories r = {run['neighbours_times']:.2f}; a sample's "
        f"silhouette and its time r = {run['separation_and_time']:.2f}"
        for run in runs
    )
    word = "reproduced" if met == 3 else "partly" if met else "not reproduced"
    return (
        outcome,
        f"{word}: gradients separate classes better than features on {better} of {len(runs)} data "
        f"sets; trajectories cluster by class on {by_class} and by time on {by_time}",
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import subplots

    figure, axes = subplots(len(results["runs"]), 4)
    for row, run in enumerate(results["runs"]):
        for column, (name, colours) in enumerate(
            (
                ("features", "labels"),
                ("gradients", "labels"),
                ("trajectories", "labels"),
                ("trajectories", "times"),
            )
        ):
            x, y = np.asarray(run["planes"][name]).T
            axes[row, column].scatter(
                x, y, c=run[colours], s=8, cmap="viridis" if colours == "times" else "brg"
            )
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].set_title(
                f"{run['task']['data']}: {name} by {'class' if colours == 'labels' else 'time'}",
                fontsize=8,
            )
    figure.savefig(path, dpi=110)


EXPERIMENT = Experiment(
    name="fig3",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
