# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A prediction taken apart
#
# `ntk_tt.prediction.predict` in four steps, each of which can be looked at: the network's tangent,
# the kernel, the optimiser on the linear model, the times.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntk_tt

task = ntk_tt.load_task("digits", num_classes=3, per_class=10)
model = ntk_tt.load_model(num_classes=task.num_classes)
images, labels = model.preprocess(task.images), task.labels

# %% [markdown]
# **1. Gradients of all outputs, projected at random.** $\Phi\Phi^\top$ estimates $\Theta = JJ^\top$
# without bias.

# %%
features = ntk_tt.features.jacobian_features(
    model.apply, model.params, images, options=ntk_tt.FeatureOptions(num_projections=2048)
)
theta = ntk_tt.kernels.ntk_from_features(features)
exact = ntk_tt.kernels.empirical_ntk(model.apply, model.params, images).reshape(theta.shape)
error = float(jnp.linalg.norm(theta - exact) / jnp.linalg.norm(exact))
print(
    f"features {features.shape} stand for {model.num_params} parameters; relative error of Θ: "
    f"{100 * error:.1f} %"
)

shown, largest = slice(0, 36), float(exact.max())  # the first twelve images
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
for axis, matrix, title in zip(axes, (exact, theta), ("exact Θ", "ΦΦᵀ, D' = 2048"), strict=True):
    picture = axis.imshow(
        matrix[shown, shown], vmin=-largest, vmax=largest, cmap="RdBu_r", interpolation="nearest"
    )
    axis.set(title=title, xlabel="image × output", xticks=[], yticks=[])
_ = figure.colorbar(picture, ax=axes, shrink=0.8)

# %% [markdown]
# **2. The optimiser, in function space.** The outputs move by $\Theta$ times the gradient of the
# loss in the outputs; no weights are needed.

# %%
learning_rate, momentum, num_steps = 0.002, 0.9, 60
logits = model.apply(model.params, images)
targets = jax.nn.one_hot(labels, task.num_classes)
velocity, f, losses = jnp.zeros(logits.size), logits, []
for _ in range(num_steps + 1):
    losses.append(float(-(targets * jax.nn.log_softmax(f)).sum(-1).mean()))
    gradient = (jax.nn.softmax(f) - targets).reshape(-1) / len(images)
    velocity = momentum * velocity + theta @ gradient
    f = f - learning_rate * velocity.reshape(f.shape)
print(f"by hand: loss {losses[0]:.3f} -> {losses[-1]:.3f}")

# %% [markdown]
# **3. The same by the library**, from the same projection.

# %%
problem = ntk_tt.surrogate.linearize(
    model, images, labels, options=ntk_tt.FeatureOptions(num_projections=2048)
)
optimizer = ntk_tt.OptimizerConfig(learning_rate, momentum)
prediction = ntk_tt.prediction.predict(problem, optimizer, num_steps)
print(
    f"library: loss {prediction.loss[0]:.3f} -> {prediction.loss[-1]:.3f}, largest difference "
    f"{np.abs(prediction.loss - losses).max():.1e}"
)

# %% [markdown]
# **4. Times**, and what limits them: the stability of the optimiser, and the curvature of the
# network.

# %%
verdict = ntk_tt.prediction.assess(problem, model, images, labels, optimizer, num_steps)
real = ntk_tt.finetune(model, images, labels, optimizer, num_steps)
real_times = ntk_tt.times.crossing.training_times(real.steps, real.loss, real.error)
print(f"trust {verdict.trust}: {verdict.reason}")
for level in ("0.5", "0.4", "0.2"):
    print(
        f"loss < {level}: predicted {prediction.times['loss_below'][level]}, real "
        f"{real_times['loss_below'][level]}"
    )

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.plot(real.steps, real.loss, color="#1f5673", label="real training")
axis.plot(prediction.steps, prediction.loss, "--", color="#c1440e", label="predicted")
axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
_ = axis.legend(frameon=False)

# %% [markdown]
# **5. Single samples.** The prediction has every sample's outputs, so it says which images are
# learned late. A sample's residual is the distance of its probabilities from its label.

# %%
predicted = ntk_tt.dynamics.simulate(problem, optimizer, num_steps, save_logits=True)


def residuals(logits):
    return np.linalg.norm(np.asarray(jax.nn.softmax(logits) - targets), axis=-1)


along = residuals(predicted.logits)
after = residuals(model.apply(real.params, images))
agreement = np.corrcoef(along[-1], after)[0, 1]
print(f"residuals after {num_steps} steps, predicted and real: correlation {agreement:.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for label in range(task.num_classes):
    chosen = labels == label
    left.plot(predicted.steps, along[:, chosen], color=f"C{label}", linewidth=0.8)
    right.plot(after[chosen], along[-1, chosen], "o", color=f"C{label}", label=f"class {label}")
left.set(xlabel="step", ylabel="residual", title="predicted, each sample")
right.plot([0, 1.2], [0, 1.2], color="0.7", linewidth=1)
right.set(xlabel="real", ylabel="predicted", title=f"after {num_steps} steps")
_ = right.legend(frameon=False)
