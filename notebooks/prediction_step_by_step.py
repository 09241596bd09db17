# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # A prediction taken apart
#
# `ntk_tt.predict` in four steps, each of which can be looked at: the network's tangent, the kernel,
# the optimiser on the linear model, the times.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import ntk_tt

task = ntk_tt.load_task("digits", num_classes=3, per_class=10)
model = ntk_tt.load_model(num_classes=task.num_classes)
images, labels = model.preprocess(task.images), task.labels

# %% [markdown]
# **1. Gradients of all outputs, projected at random.** $\Phi\Phi^\top$ estimates $\Theta = JJ^\top$
# without bias.

# %%
features = ntk_tt.jacobian_features(model.apply, model.params, images, num_projections=2048)
theta = ntk_tt.ntk_from_features(features)
exact = ntk_tt.empirical_ntk(model.apply, model.params, images).reshape(theta.shape)
error = float(jnp.linalg.norm(theta - exact) / jnp.linalg.norm(exact))
print(
    f"features {features.shape} stand for {model.num_params} parameters; relative error of Θ: "
    f"{100 * error:.1f} %"
)

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
problem = ntk_tt.linearize(model.apply, model.params, images, labels, num_projections=2048)
optimizer = ntk_tt.OptimizerConfig(learning_rate, momentum)
prediction = ntk_tt.predict(problem, optimizer, num_steps)
print(
    f"library: loss {prediction.loss[0]:.3f} -> {prediction.loss[-1]:.3f}, largest difference "
    f"{np.abs(prediction.loss - losses).max():.1e}"
)

# %% [markdown]
# **4. Times**, and what limits them: the stability of the optimiser, and the curvature of the
# network.

# %%
verdict = ntk_tt.assess(problem, model.apply, model.params, images, labels, optimizer, num_steps)
real = ntk_tt.finetune(model.apply, model.params, images, labels, optimizer, num_steps)
real_times = ntk_tt.training_times(real.steps, real.loss, real.error)
print(f"trust {verdict.trust}: {verdict.reason}")
for level in ("0.5", "0.4", "0.2"):
    print(
        f"loss < {level}: predicted {prediction.times['loss_below'][level]}, real "
        f"{real_times['loss_below'][level]}"
    )
