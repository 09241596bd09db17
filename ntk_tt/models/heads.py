"""The last layer: how a new one starts, and one fitted to the features of the data it will see."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ntk_tt.jacobian.network import in_blocks
from ntk_tt.models.model import Model
from ntk_tt.runtime.input_trees import Inputs, num_samples, take

HeadRule = Literal["pytorch", "lecun", "zero"]


def check_head_rule(rule: str) -> None:
    if rule not in get_args(HeadRule):
        raise ValueError(
            f"head: unknown rule {rule!r}; give {', '.join(map(repr, get_args(HeadRule)))}"
        )


def head_values(
    rule: HeadRule, inputs: int, outputs: int, key: Key[Array, ""]
) -> dict[str, Float[Array, "..."]]:
    """Kernel (inputs, outputs) and bias (outputs,) of a new head.

    Args:
        rule: `pytorch`, kernel and bias uniform in ±1/√inputs (PyTorch's default for linear layers,
            as in the paper); `lecun`, kernel normal with variance 1/inputs, bias 0 (Flax's
            default); `zero`, nothing but zeros, so that training begins from equal class
            probabilities and the tangent kernel, at first, is that of the head alone.
    """
    check_head_rule(rule)
    shape, zeros = (inputs, outputs), jnp.zeros((outputs,))
    if rule == "zero":
        return {"kernel": jnp.zeros(shape), "bias": zeros}
    if rule == "lecun":
        return {"kernel": jax.random.normal(key, shape) * inputs**-0.5, "bias": zeros}
    kernel_key, bias_key = jax.random.split(key)
    bound = inputs**-0.5
    return {
        "kernel": jax.random.uniform(kernel_key, shape, minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound),
    }


def with_new_head(model: Model, rule: HeadRule, key: Key[Array, ""]) -> Model:
    """The model with its head started anew by a rule, see `head_values`.

    Raises:
        ValueError: it does not say where its head is, or that is no linear layer.
    """
    try:
        found = part(model.params, model.head) if model.head else None
    except (KeyError, ValueError, IndexError, TypeError, AttributeError):
        found = None
    if not (
        isinstance(found, Mapping)
        and "kernel" in found
        and set(found) <= {"kernel", "bias"}
        and found["kernel"].ndim == 2
    ):
        raise ValueError(
            f"head: {model.name} does not say where its linear head is, so {rule!r} cannot be "
            "applied; leave --head out, or return ntk_tt.from_nnx(…, head='NAME') or its like"
        )
    inputs, outputs = found["kernel"].shape
    values = head_values(rule, inputs, outputs, key)
    return eqx.tree_at(
        lambda model: model.params,
        model,
        replaced(
            model.params,
            model.head,
            {name: values[name].astype(leaf.dtype) for name, leaf in found.items()},
        ),
    )


def fit_linear_head(
    model: Model,
    images: Inputs,
    labels: Int[Array | np.ndarray, " n"],
    *,
    regularization: float = 1e-3,
    block_size: int = 64,
) -> Model:
    """The model with its head fitted to its frozen features by multinomial logistic regression (a
    linear probe).

    Minimises mean cross-entropy + ½·regularization·‖W‖² over kernel W and bias, on features
    standardised to mean 0 and variance 1 each, and writes the standardisation into kernel and bias.
    Fine-tuning from there begins near the end of the head's own training, so what is left to
    predict is the backbone's.

    Args:
        model: with a head (load it with `num_classes`).
        images: normalised, or tokens, as `model.apply` takes them.
        labels: 0 … K−1, each class at least once.
        regularization: of the standardised problem; more is needed for fewer images.
        block_size: images at a time, fewer where these do not fit into memory.

    Returns:
        The model with other `params`; nothing else changes.

    Raises:
        ValueError: no head, logits that are not linear in the features, labels that do not fit,
            regularization ≤ 0.

    Cost: one forward pass over the images, then a convex problem in (F + 1)·K unknowns.
    """
    if not model.head:
        raise ValueError(
            f"model: {model.name} does not say where its head is; load it by name with num_classes"
        )
    if not regularization > 0:
        raise ValueError(
            f"regularization: must be positive, got {regularization}; separable classes have no "
            "finite optimum without"
        )
    classes = np.unique(np.asarray(labels))
    if (
        len(labels) != num_samples(images)
        or not np.array_equal(classes, np.arange(model.num_classes))
        or len(classes) < 2
    ):
        raise ValueError(
            f"labels: need one for each of {num_samples(images)} inputs and every class of 0 … "
            f"{model.num_classes - 1}, got {len(labels)} of classes {classes.tolist()}"
        )

    function = jax.jit(model.features)
    features = np.concatenate(
        [
            np.asarray(block)
            for block in in_blocks(model.features, model.params, images, block_size=block_size)
        ]
    )
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    # a feature that never changes gets no weight
    scale = np.where(scale > 1e-6 * max(1e-12, scale.max()), scale, np.inf)
    # For two classes scikit-learn fits the difference w of the logits, W = ∓w/2, and ‖W‖² = ½‖w‖².
    penalty = regularization * len(labels) / (2 if len(classes) == 2 else 1)
    from sklearn.linear_model import LogisticRegression  # dearer to import than JAX

    probe = LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-6).fit(
        (features - mean) / scale, np.asarray(labels)
    )
    kernel, bias = probe.coef_.T, probe.intercept_
    if len(classes) == 2:
        kernel, bias = np.concatenate([-kernel, kernel], 1) / 2, np.concatenate([-bias, bias]) / 2
    kernel = kernel / scale[:, None]
    values = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.asarray(bias - mean @ kernel, jnp.float32),
    }
    fitted = eqx.tree_at(
        lambda model: model.params, model, replaced(model.params, model.head, values)
    )

    few = take(images, slice(2))
    linear = function(model.params, few) @ values["kernel"] + values["bias"]
    if not np.allclose(
        jax.jit(model.apply)(fitted.params, few),
        linear,
        rtol=1e-2,
        atol=1e-2 * (1 + float(jnp.abs(linear).max())),
    ):
        raise ValueError(
            f"model: the logits of {model.name} are not its head times its features; load it with "
            "num_classes for a linear head"
        )
    return fitted


def _keys(tree: Mapping[Any, Any], name: str) -> list[Any]:
    """A dotted name as the keys that lead to it; lists have integer keys."""
    keys = []
    for step in name.split("."):
        keys.append(step if step in tree else int(step))
        tree = tree[keys[-1]]
    return keys


def part(tree: Mapping[Any, Any], name: str) -> Any:
    """What lies under a dotted name."""
    found: Any = tree
    for key in _keys(tree, name):
        found = found[key]
    return found


def replaced(tree: Mapping[Any, Any], name: str, value: PyTree) -> dict[Any, Any]:
    """A copy of the tree with another value under a dotted name; the rest is shared."""
    first, *rest = _keys(tree, name)
    return {
        **tree,
        first: replaced(tree[first], ".".join(map(str, rest)), value) if rest else value,
    }
