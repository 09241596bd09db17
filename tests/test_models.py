"""Networks, their pure functions and their checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_tt.data import load_task
from ntk_tt.models import MODELS, Model, from_nnx, load_model, read_weights, save_weights
from ntk_tt.models.load import weight_file
from ntk_tt.models.model import IMAGENET_MEAN, IMAGENET_STD, set_values
from ntk_tt.models.zoo.mlp import MLP
from ntk_tt.models.zoo.resnet8 import ResNet8
from ntk_tt.runtime.parameter_names import named_leaves

NUM_PRETRAINED_CLASSES = 200


@pytest.fixture(scope="module")
def bundled() -> Model:
    return load_model("resnet8")


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(5), (4, 16, 16, 3))


@pytest.fixture(scope="module")
def small_resnet() -> ResNet8:
    """Random weights and statistics, so that nothing is 0 or 1 by accident."""
    # shapes only: initialising takes seconds
    module = nnx.eval_shape(lambda: ResNet8(3, widths=(2, 3, 4), rngs=nnx.Rngs(1)))
    values = nnx.to_pure_dict(nnx.state(module))
    rng = np.random.default_rng(0)
    set_values(
        module,
        jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape), jnp.float32), values
        ),
    )
    return module


def arrays_of(module: nnx.Module) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(leaf)
        for name, leaf in named_leaves(nnx.to_pure_dict(nnx.state(module))).items()
    }


class NormedLinear(nnx.Module):
    """Batch norm and a head: small enough to write down what training does to its statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(
            2, momentum=0.9, epsilon=1e-5, use_bias=False, use_scale=False, rngs=rngs
        )
        self.head = nnx.Linear(2, 3, rngs=rngs)
        self.norm.mean[...] = jnp.asarray([0.5, -1.0])
        self.norm.var[...] = jnp.asarray([4.0, 0.25])

    def __call__(self, x):
        return self.head(self.norm(x))


# load_model


@pytest.mark.slow
def test_the_bundled_network_keeps_its_head(bundled):
    arrays, record = read_weights(weight_file("resnet8", MODELS["resnet8"], "bundled"))
    assert bundled.num_classes == record["classes"] == NUM_PRETRAINED_CLASSES
    assert bundled.image_size == record["image_size"] == 32
    np.testing.assert_array_equal(bundled.params["head"]["kernel"], arrays["head.kernel"])
    np.testing.assert_array_equal(
        bundled.params["block2"]["conv1"]["kernel"], arrays["block2.conv1.kernel"]
    )
    np.testing.assert_array_equal(
        bundled.batch_statistics.state["block3"]["norm2"]["var"], arrays["block3.norm2.var"]
    )
    assert bundled.num_params == sum(
        array.size for name, array in arrays.items() if not name.endswith((".mean", ".var"))
    )


def test_a_new_head_is_seeded_and_the_rest_is_pretrained(bundled):
    first, again, other = (
        load_model("resnet8", num_classes=4, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    kernels = [np.asarray(model.params["head"]["kernel"]) for model in (first, again, other)]
    assert kernels[0].shape == (96, 4)
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.isclose(kernels[0], kernels[2]).any()
    # uniform in ±1/√96, as PyTorch does
    for values in (
        kernels[0],
        np.asarray(first.params["head"]["bias"]),
    ):
        assert 0 < np.abs(values).max() <= 96**-0.5
    assert kernels[0].std() == pytest.approx((3 * 96) ** -0.5, rel=0.15)
    for name, leaf in named_leaves(first.params).items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(leaf, named_leaves(bundled.params)[name], err_msg=name)
    assert first.num_classes == 4


def test_a_new_head_of_the_old_size_is_new_as_well(bundled):
    model = load_model("resnet8", num_classes=NUM_PRETRAINED_CLASSES)
    assert not np.isclose(
        model.params["head"]["kernel"], bundled.params["head"]["kernel"], rtol=1e-3
    ).all()


@pytest.mark.slow
def test_a_network_without_weights_is_seeded():
    first, again, other = (
        load_model("resnet8", weights="random", num_classes=3, key=jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    stems = [np.asarray(model.params["stem"]["kernel"]) for model in (first, again, other)]
    np.testing.assert_array_equal(stems[0], stems[1])
    assert not np.isclose(stems[0], stems[2]).any()
    assert first.num_classes == 3


def test_image_size_is_that_of_the_record_unless_given(tmp_path):
    module = ResNet8(3, rngs=nnx.Rngs(0))
    save_weights(
        tmp_path / "w.safetensors", nnx.to_pure_dict(nnx.state(module)), record={"image_size": 48}
    )
    assert load_model(weights=str(tmp_path / "w.safetensors")).image_size == 48
    assert load_model(weights=str(tmp_path / "w.safetensors"), image_size=20).image_size == 20


# from_nnx


def test_apply_is_the_module_in_evaluation_mode(small_resnet, images):
    model = from_nnx(small_resnet)
    evaluated, trained = nnx.clone(small_resnet), nnx.clone(small_resnet)
    evaluated.eval()
    trained.train()
    run = nnx.jit(lambda module, images: module(images))
    expected = run(evaluated, images)
    found = jax.jit(model.apply)(model.params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # else the test above says nothing
    assert not np.allclose(run(trained, images), expected, rtol=1e-2)


def test_apply_of_a_sample_does_not_depend_on_the_others(small_resnet, images):
    model = from_nnx(small_resnet)
    apply = jax.jit(model.apply)
    alone = np.concatenate([apply(model.params, images[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(apply(model.params, images)[:2], alone, rtol=1e-5, atol=1e-5)


def test_parameters_are_named_as_in_a_checkpoint_and_decide_the_output(small_resnet, images):
    model = from_nnx(small_resnet)
    parameters = {name for name in arrays_of(small_resnet) if not name.endswith((".mean", ".var"))}
    assert set(named_leaves(model.params)) == parameters
    assert "block2.shortcut.layers.0.kernel" in parameters
    zero_head = {
        **model.params,
        "head": {"kernel": jnp.zeros((4, 3)), "bias": jnp.asarray([1.0, 2.0, 3.0])},
    }
    np.testing.assert_array_equal(model.apply(zero_head, images), np.tile([1.0, 2.0, 3.0], (4, 1)))


def test_features_times_head_are_the_logits(small_resnet, images):
    model = from_nnx(small_resnet)
    features = model.features(model.params, images)
    assert features.shape == (4, 4)
    head = model.params["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"], model.apply(model.params, images), rtol=1e-4
    )


def test_a_network_without_features_says_so():
    model = from_nnx(NormedLinear(nnx.Rngs(0)), name="mine")
    with pytest.raises(ValueError, match="mine has no `features` method"):
        model.features(model.params, jnp.ones((1, 1, 1, 2)))


def test_a_network_without_statistics_has_none():
    assert from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).batch_statistics is None


def test_training_mode_normalises_by_the_batch_and_updates_the_statistics():
    model = from_nnx(NormedLinear(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (7, 2)) * 3 + 1
    statistics = model.batch_statistics
    logits, new_state = statistics.apply_train(model.params, statistics.state, x)
    head = model.params["head"]
    mean, variance = np.mean(x, 0), np.var(x, 0)
    np.testing.assert_allclose(
        logits,
        (x - mean) / np.sqrt(variance + 1e-5) @ head["kernel"] + head["bias"],
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        new_state["norm"]["mean"], 0.9 * np.asarray([0.5, -1.0]) + 0.1 * mean, rtol=1e-5
    )
    np.testing.assert_allclose(
        new_state["norm"]["var"], 0.9 * np.asarray([4.0, 0.25]) + 0.1 * variance, rtol=1e-4
    )
    # nothing is changed in place
    np.testing.assert_array_equal(statistics.state["norm"]["mean"], [0.5, -1.0])


def test_evaluation_mode_normalises_by_the_given_statistics():
    model = from_nnx(NormedLinear(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (7, 2))
    state = {"norm": {"mean": jnp.asarray([2.0, 3.0]), "var": jnp.asarray([1.5, 0.5])}}
    head = model.params["head"]
    expected = (x - state["norm"]["mean"]) / jnp.sqrt(state["norm"]["var"] + 1e-5) @ head[
        "kernel"
    ] + head["bias"]
    np.testing.assert_allclose(
        model.batch_statistics.apply_eval(model.params, state, x), expected, rtol=1e-4, atol=1e-5
    )


def test_evaluation_with_the_original_statistics_is_apply(small_resnet, images):
    model = from_nnx(small_resnet)
    statistics = model.batch_statistics
    logits = model.apply(model.params, images)
    np.testing.assert_array_equal(
        statistics.apply_eval(model.params, statistics.state, images), logits
    )
    _, new_state = statistics.apply_train(model.params, statistics.state, images)
    changed = [
        not np.allclose(old, new)
        for old, new in zip(
            jax.tree.leaves(statistics.state), jax.tree.leaves(new_state), strict=True
        )
    ]
    assert all(changed)
    assert not np.allclose(
        statistics.apply_eval(model.params, new_state, images), logits, rtol=1e-3
    )
    np.testing.assert_array_equal(model.apply(model.params, images), logits)


def test_the_module_is_left_as_it_was(small_resnet, images):
    before = arrays_of(small_resnet)
    model = from_nnx(small_resnet)
    model.batch_statistics.apply_train(
        jax.tree.map(jnp.zeros_like, model.params), model.batch_statistics.state, images
    )
    after = arrays_of(small_resnet)
    assert all((before[name] == after[name]).all() for name in before)


def test_preprocess_scales_pixels_and_normalises_channels():
    pixels = np.asarray([[[[0, 0, 0], [255, 255, 255]], [[10, 20, 30], [124, 116, 104]]]], np.uint8)
    expected = (pixels / 255 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)
    normalised = from_nnx(NormedLinear(nnx.Rngs(0))).preprocess(pixels)
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)
    other = from_nnx(
        NormedLinear(nnx.Rngs(0)), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25)
    ).preprocess(pixels)
    np.testing.assert_allclose(other[0, 0, 1], [1.0, 1.0, 0.0], atol=1e-6)


# the bundled network


@pytest.mark.data
def test_the_bundled_network_recognises_tiny_imagenet(bundled, data_root):
    task = load_task(
        f"folder:{data_root / 'tiny_imagenet32' / 'test'}",
        num_classes=None,
        per_class=2,
        image_size=32,
        seed=0,
    )
    assert task.num_classes == NUM_PRETRAINED_CLASSES
    logits = jax.jit(bundled.apply)(bundled.params, bundled.preprocess(task.images))
    accuracy = float((np.argmax(logits, -1) == task.labels).mean())
    assert accuracy > 0.2  # chance is 0.005


def test_random_weights_are_those_of_flax_with_the_same_key():
    key = jax.random.key(7)
    model, module = (
        load_model("mlp", num_classes=2, image_size=2, key=key),
        MLP(2, inputs=12, rngs=nnx.Rngs(key)),
    )
    for ours, theirs in zip(
        jax.tree.leaves(model.params),
        jax.tree.leaves(nnx.to_pure_dict(nnx.state(module))),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_features_can_be_jitted_as_they_are(bundled):
    images = jnp.ones((1, 8, 8, 3))
    np.testing.assert_allclose(
        jax.jit(bundled.features)(bundled.params, images),
        bundled.features(bundled.params, images),
        rtol=1e-5,
        atol=1e-6,
    )
