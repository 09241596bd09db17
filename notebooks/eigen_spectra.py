# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Eigen-spectra, and what they say of training time
#
# Under the MSE loss gradient flow on the linearised network is a sum of exponentials: $L(\tau) =
# \frac12 \sum_k p_k e^{-2\lambda_k\tau}$, with $\lambda_k$ the eigenvalues of $\Theta/N$ and $p_k$
# how much of what is to be learned lies along the k-th eigenvector. Training is fast where the task
# lies along large eigenvalues.

# %%
import matplotlib.pyplot as plt
import numpy as np

import ntk_tt

task = ntk_tt.load_task("digits", num_classes=3, per_class=16)
model = ntk_tt.load_model(num_classes=task.num_classes)
images, labels = model.preprocess(task.images), task.labels
ntk = np.asarray(ntk_tt.kernels.empirical_ntk(model.apply, model.params, images))
rows = ntk.shape[0] * ntk.shape[1]
logits = np.asarray(model.apply(model.params, images))
targets = np.eye(3, dtype=np.float32)[labels]
found = ntk_tt.kernels.ntk_spectrum(ntk.reshape(rows, rows), logits - targets)

# %% [markdown]
# A power law describes the eigenvalues from the few largest on; most of the task lies along the
# first ten.

# %%
law = ntk_tt.kernels.fit_power_law(found.eigenvalues, 3)
share = found.projections.cumsum() / found.projections.sum()
print(f"eigenvalues of Θ/N fall as k^−{law.exponent:.2f} between ranks {law.first} and {law.last}")
print(
    f"of what is to be learned, {100 * share[0]:.0f} % lies along the first eigenvector, "
    f"{100 * share[9]:.0f} % along the first ten"
)

ranks = np.arange(1, len(found.eigenvalues) + 1)
fitted = ranks[law.first - 1 : law.last]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.loglog(ranks, np.maximum(found.eigenvalues, 1e-9), ".", color="#1f5673", label="eigenvalues")
left.loglog(
    fitted,
    law.coefficient * fitted**-law.exponent,
    color="#c1440e",
    label=f"$k^{{-{law.exponent:.2f}}}$",
)
left.set(xlabel="rank k", ylabel=r"$\lambda_k$ of $\Theta/N$", title="spectrum")
left.legend(frameon=False)
right.loglog(ranks, np.maximum(found.projections, 1e-9), ".", color="#1f5673")
right.set(xlabel="rank k", ylabel="$p_k$", title="what is to be learned, by eigenvector")
summed = right.twinx()
summed.plot(ranks, 100 * share, color="#c1440e")
_ = summed.set(ylabel="sum up to k [%]", ylim=(0, 100))

# %% [markdown]
# The time until the loss is halved, for this task and for the same images with shuffled labels: the
# eigenvalues are the same, so it is the projections alone that make the difference.

# %%
times = np.geomspace(1e-4, 1e3, 400) / found.eigenvalues[0]
shuffled = ntk_tt.kernels.ntk_spectrum(
    ntk.reshape(rows, rows), logits - targets[np.random.default_rng(0).permutation(len(targets))]
)
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, each in (("the labels", found), ("shuffled labels", shuffled)):
    loss = each.loss(times)
    axis.semilogx(times * found.eigenvalues[0], loss / loss[0], label=name)
    half = times[np.argmax(loss < loss[0] / 2)] * found.eigenvalues[0]
    print(f"{name}: loss halved after τ = {half:.2g} / λ_1")
axis.axhline(0.5, color="0.7", linewidth=1)
axis.set(xlabel=r"time $\tau\lambda_1$", ylabel="loss over the initial one")
_ = axis.legend(frameon=False)

# %% [markdown]
# More data than was seen: the sample's own curve is too fast, since fewer samples are easier to
# fit. The resolvent knows how much.

# %%
larger, until = ntk_tt.scaling.extrapolate_resolvent(found, 10 * found.num_samples)
for fraction in (0.7, 0.5, 0.3):
    reached = [
        times[np.argmax(curve < fraction * curve[0])] * found.eigenvalues[0]
        if (curve < fraction * curve[0]).any()
        else np.nan
        for curve in (found.loss(times), larger.loss(times))
    ]
    print(
        f"loss at {fraction:g} of its start: τ = {reached[0]:.2g} / λ_1 with {found.num_samples} "
        f"images, {reached[1]:.2g} with {larger.num_samples}"
    )
print(f"(resting on this sample up to τ = {until * found.eigenvalues[0]:.2g} / λ_1)")

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for each in (found, larger):
    loss = each.loss(times)
    axis.semilogx(times * found.eigenvalues[0], loss / loss[0], label=f"{each.num_samples} images")
axis.axvline(until * found.eigenvalues[0], color="0.7", linestyle=":", label="known up to here")
axis.set(xlabel=r"time $\tau\lambda_1$", ylabel="loss over the initial one")
_ = axis.legend(frameon=False)
