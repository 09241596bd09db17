"""Parts of a network that train: the right names, the right columns of the Jacobian, adapters
against a dense oracle, prediction and truth.
"""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_tt
from ntk_tt.features.compute import jacobian_features
from ntk_tt.jacobian.network import jacobian_block
from ntk_tt.models import Model, from_nnx
from ntk_tt.models.lora import LoRA
from ntk_tt.models.trainable import restrict
from ntk_tt.runtime.parameter_names import named_leaves
from tests.networks import normal


class Block(nnx.Module):
    def __init__(self, width, *, rngs):
        self.conv1 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x):
        return jax.nn.gelu(self.norm1(self.conv1(x)))


class Network(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.block1, self.block2 = Block(4, rngs=rngs), Block(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def features(self, x):
        return self.block2(self.block1(self.stem(x))).mean(axis=(1, 2))

    def __call__(self, x):
        return self.head(self.features(x))


@pytest.fixture(scope="module")
def model() -> Model:
    return from_nnx(nnx.jit(lambda: Network(rngs=nnx.Rngs(0)))(), num_classes=3)


@pytest.fixture(scope="module")
def images():
    return normal(1, 6, 6, 6, 2)


@pytest.fixture(scope="module")
def jacobian(model, images) -> dict[str, np.ndarray]:
    """The dense Jacobian of the whole network by parameter name, (N, C, *shape): plain reverse
    mode.
    """
    return {
        name: np.asarray(leaf)
        for name, leaf in named_leaves(
            jax.jit(jax.jacrev(lambda params: model.apply(params, images)))(model.params)
        ).items()
    }


# which names


def named(names) -> Model:
    """A network of parameters with these names; "!" marks a matrix."""
    params: dict = {}
    for name in names:
        *path, leaf = name.rstrip("!").split(".")
        place = params
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = jnp.ones((3, 2) if name.endswith("!") else 2)
    return Model(params=params, apply=lambda params, x: x)


RESNET = named(
    [
        "conv1.kernel!",
        "bn1.scale",
        "bn1.bias",
        "fc.kernel!",
        "fc.bias",
        *(
            f"layer{stage}.{block}.{rest}"
            for stage in (1, 2, 10)
            for block in (0, 1)
            for rest in (
                "conv1.kernel!",
                "bn1.scale",
                "bn1.bias",
                "downsample.0.kernel!",
                "downsample.1.scale",
            )
        ),
    ]
)
VIT = named(
    [
        "patch_embed.kernel!",
        "norm.weight",
        "norm.bias",
        "classifier.weight!",
        "classifier.bias",
        *(
            f"blocks.{index}.{rest}"
            for index in (0, 1, 2, 11)
            for rest in (
                "norm1.weight",
                "norm1.bias",
                "attention.qkv.weight!",
                "attention.qkv.bias",
            )
        ),
    ]
)
VGG = named(
    [f"features.{index}.{rest}" for index in (0, 3) for rest in ("kernel!", "bias")]
    + [f"classifier.{index}.{rest}" for index in (0, 3, 6) for rest in ("kernel!", "bias")]
)


@pytest.mark.parametrize(
    ("network", "specification", "expected"),
    [
        (RESNET, "head", ["fc.*"]),
        (VIT, "head", ["classifier.*"]),
        (VGG, "head", ["classifier.6.*"]),
        (RESNET, "bias", ["*.bias"]),
        (VIT, "norm", ["norm.*", "*.norm1.*"]),
        (RESNET, "norm", ["bn1.*", "*.bn1.*", "*.downsample.1.scale"]),
        (RESNET, "last:1", ["layer10.1.*", "fc.*"]),
        (RESNET, "last:3", ["layer10.*", "layer2.1.*", "fc.*"]),
        (VIT, "last:2", ["blocks.2.*", "blocks.11.*", "classifier.*"]),
        (VGG, "glob:features.*", ["features.*"]),
        (VGG, "glob:features", None),
        (VIT, "regex:qkv.(weight|bias)$", ["*.qkv.*"]),
        (
            VIT,
            r"regex:blocks.1+\.norm+head",
            ["blocks.1.norm1.*", "blocks.11.norm1.*", "classifier.*"],
        ),
        (VGG, "bias+head", ["*.bias", "classifier.6.kernel"]),
        (VGG, ["bias", "head"], ["*.bias", "classifier.6.kernel"]),
        (VGG, "all", ["*"]),
    ],
)
def test_a_specification_means_these_parameters(network, specification, expected):
    names = list(named_leaves(network.params))
    if expected is None:
        with pytest.raises(
            ValueError,
            match=r"trainable: 'glob:features' matches no parameter; there are classifier.0.bias, "
            r".* features.3.kernel",
        ):
            restrict(network, specification)
        return
    restricted = restrict(network, specification)
    assert set(named_leaves(restricted.params)) == {
        name for name in names for pattern in expected if fnmatch.fnmatchcase(name, pattern)
    }


def test_numbered_layers_without_a_head_have_last_ones():
    params = [{"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)} for _ in range(11)]
    restricted = restrict(Model(params=params, apply=lambda params, x: x), "last:2")
    assert list(named_leaves(restricted.params)) == ["9.bias", "9.weight", "10.bias", "10.weight"]


def test_the_head_the_model_names_comes_first():
    network = Model(
        params={"head": {"kernel": jnp.ones((2, 2))}, "top": {"kernel": jnp.ones((2, 2))}},
        apply=lambda params, x: x,
        head="top",
    )
    restricted = restrict(network, "head")
    assert list(named_leaves(restricted.params)) == ["top.kernel"]
    assert restricted.head == "top"
    assert restrict(network, "glob:head.*").head == ""  # it is not among the parameters any more
    assert restrict(network, ["head", LoRA(1)]).head == "trained.top"


@pytest.mark.parametrize(
    ("network", "specification", "message"),
    [
        (VGG, "everything", "trainable: unknown 'everything'; give all, head, bias"),
        (VGG, "", "trainable: unknown ''; give all, head"),
        (VGG, [], "trainable: nothing was given; give all, head"),
        (VGG, "head:2", "trainable: 'head' takes no argument, got 'head:2'"),
        (VGG, "all+head", "trainable: 'all' cannot be combined, got .*take 'all' alone"),
        (VGG, "norm", "trainable: 'norm' matches no parameter"),
        (VGG, "last", "trainable: last takes the number of blocks, got 'last'"),
        (VGG, "last:0", "trainable: last takes the number of blocks, got 'last:0'"),
        (
            RESNET,
            "last:7",
            "trainable: last:7 asks for more than the 6 blocks layer1.0, .*layer10.1; take at most "
            "that",
        ),
        (
            named(["a.kernel!", "b.kernel!"]),
            "last:1",
            "trainable: there are no numbered blocks to take the last 1 of",
        ),
        (
            named(["a.kernel!", "b.kernel!"]),
            "head",
            "trainable: cannot tell which parameters are the head: none is called head, fc, "
            "classifier, linear; name them with glob:PATTERN, there are a.kernel, b.kernel",
        ),
        (
            named(["a.fc.kernel!", "b.fc.kernel!"]),
            "head",
            "trainable: more than one group of parameters could be the head: a.fc, b.fc",
        ),
        (VGG, "regex:(", r"trainable: '\(' is no regular expression"),
        (VGG, "lora", "trainable: cannot read 'lora'; give lora:RANK"),
        (VGG, "lora:many", "trainable: cannot read 'lora:many'"),
        (VGG, "lora:0", "rank: must be at least 1, got 0"),
        (VGG, "lora:2:-1", "alpha: must be positive, got -1.0"),
        (
            named(["a.w!", "b.bias"]),
            "lora:2",
            "trainable: low-rank adapters need kernels .* 'kernel or weight' matches none .* some "
            "of: a.w",
        ),
        (VGG, "glob:*+lora:2", "trainable: low-rank adapters need kernels .* some of: none"),
        (VGG, [LoRA(2, output_axis=2)], r"output_axis: 'classifier.0.kernel' has 2 axes, got 2"),
    ],
)
def test_bad_specifications_are_refused(network, specification, message):
    with pytest.raises(ValueError, match=message):
        restrict(network, specification)


# Jacobians


@pytest.mark.slow_but("glob:*")
@pytest.mark.parametrize("specification", ["head", "norm", "last:1", "glob:block1.*+bias"])
def test_the_jacobian_is_the_columns_of_the_whole_one(specification, model, images, jacobian):
    restricted = restrict(model, specification)
    kept = list(named_leaves(restricted.params))
    assert 0 < len(kept) < len(jacobian)
    np.testing.assert_array_equal(
        restricted.apply(restricted.params, images), model.apply(model.params, images)
    )
    expected = np.concatenate(
        [jacobian[name].reshape(*images.shape[:1], 3, -1) for name in kept], axis=-1
    )
    features = jacobian_features(
        restricted.apply,
        restricted.params,
        images,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    np.testing.assert_allclose(features, expected, atol=2e-5)
    assert restricted.num_params == expected.shape[-1]


def kernel_matrix(array, lead: int):
    """A kernel with its `lead` leading axes as (..., rows, outputs), outputs last."""
    return array.reshape(*array.shape[:lead], -1, array.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("at_start", [True, False])
def test_the_jacobian_of_adapters_is_that_of_their_product(at_start, model, images, jacobian):
    """∂f/∂B = (α/r)·Aᵀ G and ∂f/∂A = (α/r)·G Bᵀ, G the dense Jacobian of the kernel as a matrix
    (zero for A at the start).
    """
    restricted = restrict(model, [LoRA(2, alpha=3.0), "head"], key=jax.random.key(5))
    params = restricted.params
    kernels = ["block1.conv1.kernel", "block2.conv1.kernel", "stem.kernel"]
    assert list(params["lora"]) == kernels
    # B ≠ 0, the kernels moved back by as much: the network, and so G, stays the same
    if not at_start:
        pairs = {
            name: {"a": pair["a"], "b": normal(index, *pair["b"].shape)}
            for index, (name, pair) in enumerate(params["lora"].items())
        }
        moved = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf
                - 1.5
                * (
                    pairs[".".join(entry.key for entry in path)]["a"]
                    @ pairs[".".join(entry.key for entry in path)]["b"]
                ).reshape(leaf.shape)
                if ".".join(entry.key for entry in path) in pairs
                else leaf
            ),
            model.params,
        )
        restricted = restrict(
            Model(params=moved, apply=model.apply),
            [LoRA(2, alpha=3.0), "head"],
            key=jax.random.key(5),
        )
        params = {"lora": pairs, "trained": restricted.params["trained"]}
    np.testing.assert_allclose(
        jax.jit(restricted.apply)(params, images),
        jax.jit(model.apply)(model.params, images),
        atol=1e-5,
    )
    found = jax.jit(lambda params: jacobian_block(restricted.apply, params, images))(params)
    for name in kernels:
        gradient = kernel_matrix(jacobian[name], 2)
        a, b = params["lora"][name]["a"], params["lora"][name]["b"]
        np.testing.assert_allclose(
            found["lora"][name]["b"], 1.5 * np.einsum("kr,ncko->ncro", a, gradient), atol=5e-5
        )
        np.testing.assert_allclose(
            found["lora"][name]["a"], 1.5 * np.einsum("ncko,ro->nckr", gradient, b), atol=5e-5
        )
    np.testing.assert_allclose(
        found["trained"]["head"]["kernel"], jacobian["head.kernel"], atol=2e-5
    )
    structured = jacobian_features(
        restricted.apply, params, images, options=ntk_tt.FeatureOptions(num_projections="exact")
    )
    flat = np.concatenate(
        [np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(found)], axis=-1
    )
    np.testing.assert_allclose(structured, flat, atol=5e-5)


# adapters


def test_adapters_start_at_the_network_and_follow_their_key(model, images):
    one, again, other = (restrict(model, "lora:2", key=jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.apply(one.params, images), model.apply(model.params, images))
    for name, pair in one.params["lora"].items():
        rows, outputs = kernel_matrix(named_leaves(model.params)[name], 0).shape
        assert (pair["a"].shape, pair["b"].shape) == ((rows, 2), (2, outputs))
        assert not pair["b"].any()
        assert 0.5 * rows**-0.5 < np.abs(pair["a"]).max() <= rows**-0.5
        np.testing.assert_array_equal(pair["a"], again.params["lora"][name]["a"])
        assert not np.array_equal(pair["a"], other.params["lora"][name]["a"])
    assert list(one.params["lora"]) == [
        "block1.conv1.kernel",
        "block2.conv1.kernel",
        "head.kernel",
        "stem.kernel",
    ]
    assert set(named_leaves(one.params)) == {
        f"lora.{name}.{factor}" for name in one.params["lora"] for factor in "ab"
    }


def test_a_kernel_is_a_matrix_of_its_outputs():
    """Flax kernels have their outputs last, PyTorch's and Equinox's `weight` first; either way each
    output is one column of A B.
    """
    key = jax.random.key(0)
    kernels = {
        "flax": {"kernel": jnp.zeros((3, 3, 2, 5))},
        "torch": {"weight": jnp.zeros((5, 2, 3, 3))},
        "plain": {"w": jnp.zeros((4, 5))},
    }
    restricted = restrict(
        Model(params=kernels, apply=lambda params, x: params),
        [LoRA(2, alpha=4.0), LoRA(3, pattern="*.w", output_axis=0)],
        key=key,
    )
    rng = np.random.default_rng(0)
    pairs = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        restricted.params["lora"],
    )
    made = restricted.apply({"lora": pairs, "trained": restricted.params["trained"]}, None)

    def product(name):
        return np.asarray(pairs[name]["a"], np.float64) @ np.asarray(pairs[name]["b"], np.float64)

    np.testing.assert_allclose(
        made["flax"]["kernel"], 2 * product("flax.kernel").reshape(3, 3, 2, 5), rtol=1e-5
    )
    for output in range(5):
        np.testing.assert_allclose(
            made["torch"]["weight"][output].ravel(),
            2 * product("torch.weight")[:, output],
            rtol=1e-5,
        )
    np.testing.assert_allclose(made["plain"]["w"], product("plain.w").T, rtol=1e-5)
    assert pairs["plain.w"]["a"].shape == (5, 3)


# the rest of a model


def test_features_and_batch_statistics_follow(model, images):
    restricted = restrict(model, "lora:1+bias")
    np.testing.assert_array_equal(
        restricted.features(restricted.params, images), model.features(model.params, images)
    )
    whole, part = model.batch_statistics, restricted.batch_statistics
    np.testing.assert_array_equal(
        part.apply_eval(restricted.params, part.state, images),
        whole.apply_eval(model.params, whole.state, images),
    )
    (logits, state), (expected, expected_state) = (
        part.apply_train(restricted.params, part.state, images),
        whole.apply_train(model.params, whole.state, images),
    )
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), state, expected_state
    )
    assert not np.allclose(jax.tree.leaves(state)[0], jax.tree.leaves(part.state)[0])
    assert (restricted.num_classes, restricted.image_size, restricted.name) == (
        model.num_classes,
        model.image_size,
        model.name,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specification", "learning_rate", "tolerance"),
    [
        ("head", 0.3, 1e-4),  # linear in its parameters: right at any step
        ("norm+head", 0.005, 0.05),
        ("lora:2+head", 0.02, 0.05),
    ],
)
def test_prediction_agrees_with_real_training_of_the_part(
    specification, learning_rate, tolerance, model, images
):
    """To a part of the fall of the loss."""
    labels = np.arange(6) % 3
    optimizer = ntk_tt.OptimizerConfig(learning_rate, momentum=0.9)
    restricted = restrict(model, specification, key=jax.random.key(2))
    problem = ntk_tt.surrogate.linearize(
        restricted,
        images,
        labels,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    prediction = ntk_tt.prediction.predict(problem, optimizer, 20)
    real = ntk_tt.finetune(restricted, images, labels, optimizer, 20)
    fall = real.loss[0] - real.loss[-1]
    assert fall > 1e-3
    np.testing.assert_allclose(prediction.loss, real.loss, rtol=0, atol=tolerance * fall)
