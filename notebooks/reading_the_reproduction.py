# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Reading the reproduction
#
# Every experiment of `experiments/` has committed results: `experiments/results/<name>/cpu.json`,
# with every run, both sides' times, the versions and the hardware. Its verdict is computed from
# them, by the rule in the module's `summarize`; here they are again.

# %%
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
root = here if (here / "experiments").exists() else here.parent
sys.path.insert(0, str(root))

from experiments.registry import EXPERIMENTS

documents = {}
for name, experiment in EXPERIMENTS.items():
    path = experiment.result_path("cpu")
    if path.exists():
        documents[name] = json.loads(path.read_text())
        outcome, verdict = experiment.summarize(documents[name]["results"])
        print(
            f"{name} ({documents[name]['environment']['date']}, "
            f"{len(documents[name]['results']['runs'])} runs)\n  {verdict}"
        )

# %% [markdown]
# A single number can be followed to its runs. Figure 1's, for example: the relative errors of
# predicted ε-times, and of the times to fractions of the initial loss, which a constant guess
# cannot get right.

# %%
from experiments.common.figures import scatter
from experiments.common.statistics import describe, pairs

if "fig1" in documents:
    records = documents["fig1"]["results"]["runs"]
    for family in ("epsilon_relative", "loss_below"):
        for method in ("replay", "paper"):
            found = describe(pairs(records, method, family))
            print(
                f"{family}, {method}: {found['count']} times, median error "
                f"{100 * found['median']:.0f} %, within 20 %: {100 * found['within_20']:.0f} %"
            )

    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    titles = {
        "epsilon_relative": "time to within ε of the fall",
        "loss_below": "time to a share of the initial loss",
    }
    for axis, (family, title) in zip(axes, titles.items(), strict=True):
        scatter(axis, records, family, 0.2, title=f"figure 1: {title}, replay")

# %% [markdown]
# What did not reproduce, with its reason:

# %%
for name, document in documents.items():
    outcome, verdict = EXPERIMENTS[name].summarize(document["results"])
    if not verdict.startswith("reproduced"):
        print(f"{name}: {verdict}\n  {outcome[:300]}")
