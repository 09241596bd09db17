# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Your own model
#
# Anything that is a pure function `apply(params, inputs) -> logits` can be asked for its training
# time. Here: a small multi-layer perceptron on the digits, first trained on five of them
# ("pre-trained"), then fine-tuned on the others.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ntk_tt

digits = load_digits()
inputs, labels = jnp.asarray(digits.data / 8 - 1, jnp.float32), digits.target


def apply(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def initialize(key, sizes=(64, 128, 128, 5)):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


# %% [markdown]
# Pre-training, with the package's own trainer, on the digits 5 to 9.

# %%
source, target = labels >= 5, labels < 5
pretraining = ntk_tt.finetune(
    ntk_tt.from_function(apply, initialize(jax.random.key(0))),
    inputs[source],
    labels[source] - 5,
    ntk_tt.OptimizerConfig(0.1, 0.9, batch_size=64),
    300,
)
print(f"pre-training: loss {pretraining.loss[0]:.2f} -> {pretraining.loss[-1]:.4f}")

# %% [markdown]
# One pass over the target data, a new head, and then any number of optimiser settings.

# %%
params = pretraining.params[:-1] + initialize(jax.random.key(1))[-1:]
x, y = inputs[target], labels[target]
model = ntk_tt.from_function(apply, params)
problem = ntk_tt.surrogate.linearize(model, x, y)
curves = {}
for learning_rate in (0.003, 0.01, 0.03):
    optimizer = ntk_tt.OptimizerConfig(learning_rate, momentum=0.9, batch_size=32)
    prediction = curves[learning_rate] = ntk_tt.prediction.predict(
        problem, optimizer, num_steps=150
    )
    verdict = ntk_tt.prediction.assess(problem, model, x, y, optimizer, num_steps=150)
    print(
        f"learning rate {learning_rate}: loss < 0.1 at step "
        f"{prediction.times['loss_below']['0.1']}, trust {verdict.trust}: {verdict.reason}"
    )

# %% [markdown]
# And the truth for one of them.

# %%
optimizer = ntk_tt.OptimizerConfig(0.01, momentum=0.9, batch_size=32)
real = ntk_tt.finetune(model, x, y, optimizer, 150)
prediction = curves[0.01]
times = ntk_tt.times.crossing.training_times(real.steps, real.loss, real.error)
for threshold, steps in prediction.times["loss_below"].items():
    print(f"loss < {threshold}: predicted {steps}, real {times['loss_below'][threshold]}")

figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for learning_rate, curve in curves.items():
    axis.plot(curve.steps, curve.loss, "--", label=f"predicted, η = {learning_rate}")
axis.plot(real.steps, real.loss, color="black", linewidth=1, label="real, η = 0.01")
axis.set(xlabel="step", ylabel="training loss", yscale="log")
_ = axis.legend(frameon=False)
