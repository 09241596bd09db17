"""Figure 4: Θ approximated and exact: curves, error and time; the spectrum of growing subsets.

    python -m experiments.run fig4 --scale cpu

Takes about 2 minutes on one core. Expected: the relative Frobenius error is that of the formula
√((tr²Θ + ‖Θ‖²)/D')/‖Θ‖ and does not depend on how R is drawn; curves from features and from exact Θ
agree to a few per cent of the initial loss from rows/D' = 1/4 on; eigenvalues of Θ/N at a given
rank settle as N grows, and the law fitted to larger sets is steeper. Ours is Θ from D' sampled
parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_tt
from experiments.common.claims import Claim, counted
from experiments.common.comparison import on, priced
from experiments.common.experiment import Experiment, Scale
from experiments.common.rates import stable_rate
from experiments.common.tasks import TaskConfig, load, real_run
from ntk_tt.features.dimension import expected_relative_error
from ntk_tt.jacobian.network import logits_and_tangent
from ntk_tt.kernels.operators import DualKernel
from ntk_tt.losses import encode_targets
from ntk_tt.surrogate.expansion import expand
from ntk_tt.surrogate.linear import LinearizedProblem

CLAIM = (
    "the projected Θ gives the curve of the exact one, its error and its spectrum are close, "
    "and spectra of growing sets approach one power law"
)
PAPER = (
    "curves coincide; relative difference in Frobenius norm below about 10 %, cost far below "
    "the exact Θ's; spectra are lines in log–log scale (no numbers)"
)
CLOSE = 0.05
"""Mean distance of two curves over the initial loss."""
SETTLED = 0.2
"""Relative change of an eigenvalue between the two largest sets."""


@dataclasses.dataclass(frozen=True)
class Config:
    task: TaskConfig
    per_class: tuple[int, ...]
    """Images per class of the growing sets."""
    projections: tuple[int, ...]
    """D', for the largest of the sets in `error_per_class`."""
    error_per_class: tuple[int, ...]
    spectrum_data: tuple[str, ...] = ("cifar10",)
    num_steps: int = 150
    rate: float = 0.2
    """η over the largest stable one."""


SCALES: dict[Scale, Config] = {
    "tiny": Config(
        TaskConfig(classes=3),
        per_class=(3, 6),
        projections=(32, 256),
        error_per_class=(3, 6),
        spectrum_data=("digits",),
        num_steps=5,
    ),
    "cpu": Config(
        TaskConfig(data="cifar10", classes=3),
        per_class=(10, 20, 40, 80),
        projections=(256, 2048, 16384),
        error_per_class=(5, 20, 40),
        num_steps=100,
    ),
    "gpu": Config(
        TaskConfig("resnet18", "cifar10", image_size=224),
        per_class=(10, 25, 50, 100, 200),
        projections=(1024, 4096, 16384, 65536),
        error_per_class=(5, 10, 20, 40),
    ),
}


def compute(config: Config) -> dict[str, Any]:
    runs, exact = [], np.zeros((0, 0))
    for per_class in sorted(config.error_per_class):
        task = dataclasses.replace(config.task, per_class=per_class)
        sizes = (
            config.projections
            if per_class == max(config.error_per_class)
            else config.projections[-2:-1]
        )
        exact, found = kernels(task, sizes)
        runs += found
    curves = compare_curves(
        config, dataclasses.replace(config.task, per_class=max(config.error_per_class)), exact
    )
    spectra = [
        spectrum_of(on(data, config.task), config.per_class) for data in config.spectrum_data
    ]
    return {"runs": runs, "curves": curves, "spectra": spectra}


def exact_ntk(task: TaskConfig) -> tuple[np.ndarray, float]:
    """Θ (N·C, N·C), and the seconds it takes without compilation."""
    model, images, _ = load(task)
    ntk_tt.kernels.empirical_ntk(model.apply, model.params, images)
    with priced() as cost:
        ntk = np.asarray(ntk_tt.kernels.empirical_ntk(model.apply, model.params, images))
    return ntk.reshape(ntk.shape[0] * ntk.shape[1], -1), cost[0].seconds


def projected(task: TaskConfig, size: int) -> tuple[np.ndarray, float]:
    """ΦΦᵀ, and its seconds without compilation."""
    model, images, _ = load(task)
    with priced() as cost:
        features = ntk_tt.features.jacobian_features(
            model.apply,
            model.params,
            images,
            options=ntk_tt.FeatureOptions(num_projections=size),
            key=jax.random.key(task.seed + 1),
        )
        estimate = np.asarray(ntk_tt.kernels.ntk_from_features(features))
    return estimate, cost[0].seconds


def sampled(task: TaskConfig, size: int) -> tuple[np.ndarray, float]:
    """Θ from D' sampled parameters, and its seconds without compilation."""
    model, images, labels = load(task)
    with priced() as cost:
        small = expand(
            model,
            images,
            labels,
            head=False,
            curvature=False,
            num_directions="all",
            options=ntk_tt.FeatureOptions(num_projections=size),
            key=jax.random.key(task.seed + 1),
        )
        rows = np.asarray(small.jacobian * jnp.sqrt(small.weights), np.float64)
        rows = rows.reshape(rows.shape[0] * rows.shape[1], -1)
        estimate = rows @ rows.T
    return estimate, cost[0].seconds


def kernels(task: TaskConfig, sizes: tuple[int, ...]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Relative Frobenius error and seconds of ΦΦᵀ at several D', beside the exact Θ."""
    exact, exact_seconds = exact_ntk(task)
    records = []
    for size in sizes:
        estimate, seconds = projected(task, size)
        by_ours, seconds_of_ours = sampled(task, size)
        records.append(
            {
                "task": dataclasses.asdict(task),
                "seed": task.seed,
                "num_samples": len(exact) // task.classes,
                "num_projections": size,
                "rows_per_projection": len(exact) / size,
                "error": float(np.linalg.norm(estimate - exact) / np.linalg.norm(exact)),
                "expected_error": float(expected_relative_error(jnp.asarray(exact), size)),
                "error_of_ours": float(np.linalg.norm(by_ours - exact) / np.linalg.norm(exact)),
                "seconds": seconds,
                "seconds_of_ours": seconds_of_ours,
                "exact_seconds": exact_seconds,
            }
        )
        print(
            f"fig4: N={records[-1]['num_samples']} D'={size}: error {records[-1]['error']:.3f}, "
            f"{seconds:.2f} s, exact {exact_seconds:.2f} s",
            flush=True,
        )
    return exact, records


def compare_curves(config: Config, task: TaskConfig, exact: np.ndarray) -> dict[str, Any]:
    """Loss curves of GD: real, from the exact Θ, and from features."""
    model, images, labels = load(task)
    logits, weight_logits = logits_and_tangent(model.apply, model.params, images, model.params)
    shape = (len(images), logits.shape[1])

    def problem(ntk: np.ndarray) -> LinearizedProblem:
        return LinearizedProblem(
            DualKernel(jnp.asarray(ntk).reshape(*shape, *shape)),
            logits,
            weight_logits,
            encode_targets(labels, shape[1], logits.dtype),
            "ce",
        )

    setting = {
        "learning_rate": stable_rate(problem(exact), config.rate),
        "momentum": 0.0,
        "batch_size": None,
    }
    real = real_run(task, setting, config.num_steps)
    curves = {
        "real": real.loss,
        "exact": ntk_tt.dynamics.simulate(
            problem(exact), ntk_tt.OptimizerConfig(**setting), config.num_steps, method="ode"
        ).loss,
    }
    for size in config.projections:
        estimate, _ = projected(task, size)
        curves[str(size)] = ntk_tt.dynamics.simulate(
            problem(estimate), ntk_tt.OptimizerConfig(**setting), config.num_steps, method="ode"
        ).loss
    return {
        "task": dataclasses.asdict(task),
        **setting,
        "num_samples": len(images),
        "steps": real.steps.tolist(),
        "loss": {name: np.asarray(curve).tolist() for name, curve in curves.items()},
        "distance": {
            name: float(np.mean(np.abs(curve - curves["exact"])) / curves["exact"][0])
            for name, curve in curves.items()
            if name != "exact"
        },
    }


def spectrum_of(task: TaskConfig, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Eigenvalues of Θ/N, all outputs, of nested subsets, and their power laws over the ranks that
    all of them have.
    """
    task = dataclasses.replace(task, per_class=max(sizes))
    model, images, labels = load(task)
    estimate = np.asarray(ntk_tt.kernels.empirical_ntk(model.apply, model.params, images))
    found = []
    for size in sizes:
        chosen = np.concatenate(
            [np.flatnonzero(labels == label)[:size] for label in range(task.classes)]
        )
        part = estimate[chosen][:, :, chosen].reshape(len(chosen) * task.classes, -1)
        eigenvalues = np.maximum(np.linalg.eigvalsh(part)[::-1], 0).astype(np.float64) / len(chosen)
        law = ntk_tt.kernels.fit_power_law(eigenvalues, 3, min(sizes) * task.classes**2 // 2)
        whole = ntk_tt.kernels.fit_power_law(eigenvalues, 3)
        ranks = np.unique(np.geomspace(1, len(eigenvalues), 60).astype(int))
        found.append(
            {
                "num_samples": len(chosen),
                "exponent": law.exponent,
                "coefficient": law.coefficient,
                "last": law.last,
                "exponent_whole": whole.exponent,
                "ranks": ranks.tolist(),
                "eigenvalues": eigenvalues[ranks - 1].tolist(),
                "at_last": float(eigenvalues[law.last - 1]),
                "at_10": float(eigenvalues[9]),
            }
        )
    return {"task": dataclasses.asdict(task), "sizes": found}


def claims(results: dict[str, Any]) -> list[Claim]:
    """The error and the price of Θ approximated, at the largest N and D'; and whether its spectrum
    settles.
    """
    largest = max(results["runs"], key=lambda run: (run["num_samples"], run["num_projections"]))
    errors = {"paper": largest["error"], "ours": largest.get("error_of_ours")}
    shares = {
        method: None if seconds is None else seconds / largest["exact_seconds"]
        for method, seconds in (
            ("paper", largest["seconds"]),
            ("ours", largest.get("seconds_of_ours")),
        )
    }
    settled = [
        abs(each["sizes"][-1]["at_10"] / each["sizes"][-2]["at_10"] - 1) <= SETTLED
        for each in results["spectra"]
    ]
    where = f"N = {largest['num_samples']}, D' = {largest['num_projections']}"
    return [
        Claim(f"{where}: relative error of Θ", "Θ", 1, 0.1, errors, "at most"),
        Claim(f"{where}: seconds over those of the exact Θ", "cost", 1, 1.0, shares, "at most"),
        counted(
            f"data sets whose 10th eigenvalue of Θ/N moves by at most {SETTLED:.0%} as N doubles",
            "spectrum",
            {"paper": settled},
        ),
    ]


def summarize(results: dict[str, Any]) -> tuple[str, str]:
    """Three claims: (1) the largest D' gives the exact Θ's curve to CLOSE and at most 10 % error;
    (2) it is cheaper than the exact Θ at the largest N; (3) the 10th eigenvalue of Θ/N changes by
    at most SETTLED between the two largest sets. Reproduced: all; partly: some.
    """
    runs, curves = results["runs"], results["curves"]
    largest = [
        run for run in runs if run["num_samples"] == max(each["num_samples"] for each in runs)
    ]
    best = largest[-1]
    one = curves["distance"][str(best["num_projections"])] <= CLOSE and best["error"] <= 0.1
    two = best["seconds"] < best["exact_seconds"]
    changes = [
        abs(each["sizes"][-1]["at_10"] / each["sizes"][-2]["at_10"] - 1)
        for each in results["spectra"]
    ]
    three = max(changes) <= SETTLED
    outcome = (
        f"N = {best['num_samples']}: relative Frobenius error (formula), seconds: "
        + "; ".join(
            f"D' = {run['num_projections']}: {100 * run['error']:.1f} % "
            f"({100 * run['expected_error']:.1f} %), {run['seconds']:.1f} s"
            for run in largest
        )
        + f"; exact {best['exact_seconds']:.1f} s. Curves from the exact Θ within "
        + ", ".join(f"{100 * value:.1f} % ({name})" for name, value in curves["distance"].items())
        + " of the initial loss. "
        + "Exponents over the same ranks: "
        + "; ".join(
            f"{each['task']['data']}: "
            + ", ".join(
                f"N = {size['num_samples']}: {size['exponent']:.2f} (all ranks "
                f"{size['exponent_whole']:.2f})"
                for size in each["sizes"]
            )
            for each in results["spectra"]
        )
    )
    met = sum((one, two, three))
    word = "reproduced" if met == 3 else "partly" if met else "not reproduced"
    return outcome, (
        f"{word}: {'' if one else 'not '}the exact curve and error below 10 % at D' = "
        f"{best['num_projections']}; {'' if two else 'not '}cheaper than the exact Θ; "
        f"the 10th eigenvalue of Θ/N still changes by {100 * max(changes):.0f} % when N doubles"
    )


def draw(results: dict[str, Any], path: Any) -> None:
    from experiments.common.figures import subplots

    figure, axes = subplots(2, 2)
    draw_curves(axes[0, 0], results["curves"])
    sizes = sorted({run["num_samples"] for run in results["runs"]})
    draw_errors(
        axes[0, 1], [run for run in results["runs"] if run["num_samples"] == sizes[-1]], sizes[-1]
    )
    draw_costs(axes[1, 0], results["runs"], sizes)
    draw_spectra(axes[1, 1], results["spectra"][-1])
    for axis in axes.ravel():
        axis.legend(frameon=False, fontsize=6)
    figure.savefig(path, dpi=120)


def draw_curves(axis: Any, curves: dict[str, Any]) -> None:
    from experiments.common.figures import PREDICTED, REAL

    for name, curve in curves["loss"].items():
        colour = {"real": REAL, "exact": PREDICTED}.get(name)
        axis.plot(
            curves["steps"],
            curve,
            color=colour,
            linewidth=2 if colour else 1,
            linestyle="-" if colour else ":",
            label={"real": "real", "exact": "exact Θ"}.get(name, f"D' = {name}"),
        )
    axis.set(xlabel="step", ylabel="training loss")


def draw_errors(axis: Any, runs: list[dict[str, Any]], num_samples: int) -> None:
    from experiments.common.figures import PREDICTED

    projections = [run["num_projections"] for run in runs]
    axis.loglog(
        projections, [run["error"] for run in runs], "o-", color=PREDICTED, label="measured"
    )
    axis.loglog(
        projections, [run["expected_error"] for run in runs], ":", color="0.4", label="formula"
    )
    axis.set(xlabel="D'", ylabel="relative Frobenius error", title=f"N = {num_samples}")


def draw_costs(axis: Any, runs: list[dict[str, Any]], sizes: list[int]) -> None:
    from experiments.common.figures import OTHER, PREDICTED, REAL

    fewest = runs[0]["num_projections"]
    same = [
        next(run for run in runs if run["num_samples"] == size and run["num_projections"] == fewest)
        for size in sizes
    ]
    axis.plot(
        sizes,
        [run["error"] for run in same],
        "o-",
        color=PREDICTED,
        label=f"error, D' = {same[0]['num_projections']}",
    )
    seconds = axis.twinx()
    seconds.plot(sizes, [run["exact_seconds"] for run in same], "s--", color=REAL, label="exact")
    seconds.plot(sizes, [run["seconds"] for run in same], "s-", color=OTHER, label="projected")
    seconds.set_ylabel("seconds")
    seconds.legend(frameon=False, fontsize=7, loc="center right")
    axis.set(xlabel="N", ylabel="relative Frobenius error", ylim=(0, None))


def draw_spectra(axis: Any, each: dict[str, Any]) -> None:
    from experiments.common.figures import PREDICTED

    for index, size in enumerate(each["sizes"]):
        axis.loglog(
            size["ranks"],
            np.maximum(size["eigenvalues"], 1e-9),
            color=str(0.75 - 0.75 * index / max(1, len(each["sizes"]) - 1)),
            label=f"N = {size['num_samples']}",
        )
    largest = each["sizes"][-1]
    ranks = np.asarray([3, largest["last"]])
    axis.loglog(
        ranks,
        largest["coefficient"] * ranks ** -largest["exponent"],
        ":",
        color=PREDICTED,
        label=f"k^−{largest['exponent']:.2f}",
    )
    axis.set(xlabel="rank", ylabel="eigenvalue / N", title=each["task"]["data"])


EXPERIMENT = Experiment(
    name="fig4",
    claim=CLAIM,
    paper_result=PAPER,
    scales=SCALES,
    compute=compute,
    summarize=summarize,
    draw=draw,
    claims=claims,
)
