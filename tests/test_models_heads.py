"""New heads by rule, and heads fitted to the features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ntk_tt.models import fit_linear_head, from_nnx, load_model
from ntk_tt.models.heads import head_values, part, replaced


def test_the_rules_have_their_variances():
    inputs, outputs = 100, 60  # 6,000 numbers: the standard error of a standard deviation is 1 %
    pytorch, lecun, zero = (
        head_values(rule, inputs, outputs, jax.random.key(0))
        for rule in ("pytorch", "lecun", "zero")
    )
    assert np.abs(pytorch["kernel"]).max() <= 0.1
    assert np.std(pytorch["kernel"]) == pytest.approx(0.1 / 3**0.5, rel=0.04)
    assert 0.09 < np.abs(pytorch["bias"]).max() <= 0.1
    assert np.std(lecun["kernel"]) == pytest.approx(0.1, rel=0.04)
    assert np.abs(lecun["kernel"]).max() > 0.25  # normal, not uniform
    for values in (lecun["bias"], zero["bias"], zero["kernel"]):
        assert not np.any(values)
    assert all(
        values["kernel"].shape == (inputs, outputs) and values["bias"].shape == (outputs,)
        for values in (pytorch, lecun, zero)
    )


@pytest.mark.slow_but("random")
@pytest.mark.parametrize(
    ("name", "features"), [("resnet8", 96), ("mlp", 256)], ids=["bundled", "random"]
)
def test_a_model_is_loaded_with_the_rule_asked_for(name, features):
    zero, lecun = (
        load_model(name, num_classes=3, image_size=4, head=rule, key=jax.random.key(4))
        for rule in ("zero", "lecun")
    )
    assert not np.any(zero.params["head"]["kernel"])
    body = [
        {part: values for part, values in model.params.items() if part != "head"}
        for model in (zero, lecun)
    ]
    assert jax.tree.all(jax.tree.map(lambda left, right: bool((left == right).all()), *body))
    expected = head_values("lecun", features, 3, jax.random.key(4))
    np.testing.assert_array_equal(lecun.params["head"]["kernel"], expected["kernel"])


def test_unknown_rules_are_refused(unchecked):
    for call in (
        lambda: load_model(num_classes=2, head="xavier"),
        lambda: head_values("xavier", 2, 2, jax.random.key(0)),
    ):  # pyright: ignore[reportArgumentType]
        with pytest.raises(
            ValueError, match="head: unknown rule 'xavier'; give 'pytorch', 'lecun', 'zero'"
        ):
            call()


def test_a_part_of_a_tree_is_found_and_replaced_in_a_copy():
    tree = {"heads": {"head": {"kernel": 1}, "other": 2}, "layers": {0: 3, 12: {"a": 4}}}
    assert part(tree, "heads.head.kernel") == 1
    assert part(tree, "layers.12.a") == 4
    changed = replaced(tree, "layers.12", 5)
    assert changed == {"heads": {"head": {"kernel": 1}, "other": 2}, "layers": {0: 3, 12: 5}}
    assert tree["layers"][12] == {"a": 4}


class Pooled(nnx.Module):
    """Features that are the channels' means, one of them constant and one large."""

    def __init__(self, num_classes, rectified=False):
        self.head = nnx.Linear(4, num_classes, rngs=nnx.Rngs(0))
        self.rectified = rectified

    def features(self, images):
        return jnp.concatenate(
            [images.mean((1, 2)) * jnp.asarray([1.0, 1.0, 100.0]), jnp.ones((len(images), 1))],
            axis=1,
        )

    def __call__(self, images):
        logits = self.head(self.features(images))
        return jax.nn.relu(logits) if self.rectified else logits


def problem(num_classes, count=60):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % num_classes
    images = rng.standard_normal((count, 2, 2, 3)) + np.eye(3)[labels][:, None, None]
    return jnp.asarray(images, jnp.float32), labels


@pytest.mark.slow_but("2")
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_fitted_head_is_where_the_gradient_vanishes(num_classes):
    model = from_nnx(Pooled(num_classes), num_classes=num_classes, head="head")
    images, labels = problem(num_classes)
    fitted = fit_linear_head(model, images, labels, regularization=0.01, block_size=32)
    features = np.asarray(model.features(model.params, images))
    mean, scale = features.mean(0), features.std(0)

    @jax.jit
    @jax.value_and_grad
    def objective(head):
        """In the original features; the penalty is that of the standardised ones."""
        loss = optax.softmax_cross_entropy_with_integer_labels(
            features @ head["kernel"] + head["bias"], labels
        ).mean()
        return loss + 0.5 * 0.01 * jnp.sum((head["kernel"] * scale[:, None]) ** 2)

    at_fit, gradient = objective(fitted.params["head"])
    assert float(objective(model.params["head"])[0]) > float(at_fit) + 0.1
    standardised = (np.asarray(gradient["kernel"]) - np.outer(mean, gradient["bias"]))[:3] / scale[
        :3, None
    ]
    assert np.abs(standardised).max() < 2e-4
    assert np.abs(gradient["bias"]).max() < 2e-4
    # a constant feature says nothing
    np.testing.assert_array_equal(fitted.params["head"]["kernel"][3], 0)
    accuracy = (np.argmax(fitted.apply(fitted.params, images), -1) == labels).mean()
    assert accuracy > 0.8


@pytest.mark.slow
def test_only_the_head_changes():
    model = load_model("resnet8", num_classes=3)
    images = jax.random.normal(jax.random.key(0), (9, 8, 8, 3))
    fitted = fit_linear_head(model, images, np.arange(9) % 3)
    for name in model.params:
        same = jax.tree.all(
            jax.tree.map(
                lambda before, after: bool((before == after).all()),
                model.params[name],
                fitted.params[name],
            )
        )
        assert same == (name != "head")
    assert (
        np.argmax(fitted.apply(fitted.params, images), -1) == np.arange(9) % 3
    ).all()  # 96 features separate 9 images


def test_what_cannot_be_fitted_is_refused(unchecked):
    images, labels = problem(3)
    model = from_nnx(Pooled(3), num_classes=3, head="head")
    with pytest.raises(ValueError, match="regularization: must be positive, got 0"):
        fit_linear_head(model, images, labels, regularization=0.0)
    with pytest.raises(
        ValueError,
        match=r"labels: need one for each of 60 inputs and every class of 0 … 2, got 60 of classes "
        r"\[0, 1\]",
    ):
        fit_linear_head(model, images, labels % 2)
    with pytest.raises(ValueError, match="labels: need one for each of 60 inputs"):
        fit_linear_head(model, images, labels[:-1])
    with pytest.raises(
        ValueError,
        match="model: Pooled does not say where its head is; load it by name with num_classes",
    ):
        fit_linear_head(from_nnx(Pooled(3), num_classes=3), images, labels)
    with pytest.raises(
        ValueError, match="model: the logits of Pooled are not its head times its features"
    ):
        fit_linear_head(
            from_nnx(Pooled(3, rectified=True), num_classes=3, head="head"), images, labels
        )
