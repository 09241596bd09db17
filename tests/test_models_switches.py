"""Switches, keys and modes of NNX, Linen, Equinox and plain functions: `apply` evaluates, or says
in a line that it cannot.
"""

import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ntk_tt import OptimizerConfig, finetune, from_equinox, from_function, from_linen, from_nnx
from ntk_tt.models.switches import evaluation_value

KEY = jax.random.key(0)
TRAINS = (
    "the network runs in training mode: give its call train, training, is_training, "
    "is_train, deterministic, use_running_average or inference, or make it with "
    "training=False"
)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (5, 4, 4, 3))


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "training",
        "is_training",
        "is_train",
        "isTraining",
        "in_training",
        "train_mode",
        "training_mode",
        "use_dropout",
        "enable_dropout",
        "stochastic",
        "update_stats",
        "update_bn",
        "update_running_average",
        "use_batch_stats",
        "batch_norm_training",
        "dropout_active",
        "mc_dropout",
        "non_deterministic",
    ],
)
def test_names_that_are_false_in_evaluation(name):
    assert evaluation_value(name) is False


@pytest.mark.parametrize(
    "name",
    [
        "deterministic",
        "use_running_average",
        "use_running_avg",
        "use_ra",
        "inference",
        "is_inference",
        "inference_mode",
        "eval",
        "eval_mode",
        "is_eval",
        "test",
        "testing",
        "disable_dropout",
        "use_global_stats",
        "dropout_deterministic",
    ],
)
def test_names_that_are_true_in_evaluation(name):
    assert evaluation_value(name) is True


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "images",
        "mode",
        "use_norm",
        "train_size",
        "test_time_augmentation",
        "trainable",
        "constraint",
        "key",
        "is_causal",
    ],
)
def test_names_that_are_no_switches(name):
    assert evaluation_value(name) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training", False),
        ("is_train", False),
        ("deterministic", True),
        ("inference", True),
        ("dropout", None),
        ("test", None),
        ("eval", None),
    ],
)
def test_fewer_names_are_switches_as_attributes(name, value):
    """There they may say what a network is made of."""
    assert evaluation_value(name, attribute=True) is value


# NNX


class Block(nnx.Module):
    """Batch norm and dropout between two layers."""

    def __init__(self, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.layer, self.norm, self.drop, self.head = (
            nnx.Linear(3, 4, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(4, 2, rngs=rngs),
        )
        self.norm.mean[...] = jnp.full(4, 0.3)

    def run(self, x, training=False):
        x = self.norm(self.layer(x.mean((1, 2))), use_running_average=not training)
        return self.head(self.drop(x, deterministic=not training))


class ByDefault(Block):
    def __call__(self, x, training: bool = True):
        return self.run(x, training)


class Required(Block):
    def __call__(self, x, train: bool):
        return self.run(x, train)


class KeywordOnly(Block):
    def __call__(self, x, *, is_train):
        return self.run(x, is_train)


class PositionOnly(Block):
    def __call__(self, x, train, /):
        return self.run(x, train)


class Reversed(Block):
    def __call__(self, x, deterministic: bool = False, *, eval_mode: "bool | None" = None):
        return self.run(x, not (deterministic and eval_mode))


class Mode(Block):
    def __call__(self, x, mode: str = "train"):
        return self.run(x, mode == "train")


class Modes(Block):
    def __call__(self, x, mode: Literal["training", "inference"]):
        assert mode in ("training", "inference")
        return self.run(x, mode == "training")


class Streams(Block):
    def __call__(self, x, *, train: bool, rngs: nnx.Rngs):
        assert isinstance(rngs, nnx.Rngs)
        return self.head(
            self.drop(
                self.norm(self.layer(x.mean((1, 2))), use_running_average=not train),
                deterministic=not train,
                rngs=rngs,
            )
        )


class TakesKey(Block):
    def __call__(self, x, key, train=True):
        jax.random.split(key)
        return self.run(x, train)


class Attribute(Block):
    """The switch is an attribute, and not one of Flax's."""

    def __init__(self):
        super().__init__()
        self.is_training = True

    def __call__(self, x):
        return self.run(x, self.is_training)


class Outer(nnx.Module):
    """Gives the switch on to a module within."""

    def __init__(self):
        self.inner = Required()

    def __call__(self, x, training=True):
        return self.inner(x, train=training)


@pytest.mark.slow_but("ByDefault", "Modes", "Outer")
@pytest.mark.parametrize(
    "network",
    [
        ByDefault,
        Required,
        KeywordOnly,
        PositionOnly,
        Reversed,
        Mode,
        Modes,
        Streams,
        TakesKey,
        Attribute,
        Outer,
    ],
)
def test_an_nnx_network_evaluates(network, images):
    module = network()
    inner = getattr(module, "inner", module)
    expected = inner.head(
        (inner.layer(images.mean((1, 2))) - 0.3) / np.sqrt(1 + 1e-5) * inner.norm.scale[...]
        + inner.norm.bias[...]
    )
    model = from_nnx(module)
    for function in (
        model.apply,
        jax.jit(model.apply),
        jax.jit(
            lambda params, x: model.batch_statistics.apply_eval(
                params, model.batch_statistics.state, x
            )
        ),
    ):
        np.testing.assert_allclose(function(model.params, images), expected, rtol=1e-4, atol=1e-5)
    jax.eval_shape(jax.jacrev(model.apply), model.params, images[:1])
    apply_train = jax.jit(model.batch_statistics.apply_train)
    logits, state = apply_train(model.params, model.batch_statistics.state, images)
    again, _ = apply_train(model.params, state, images)
    assert np.abs(logits - again).max() > 1e-3  # another mask of dropout
    assert np.abs(logits - expected).max() > 1e-3
    statistics = (
        state.get("values", state),
        model.batch_statistics.state.get("values", model.batch_statistics.state),
    )
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, statistics), strict=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
    )


class Inside(nnx.Module):
    """A module within has a switch of its own, on by default, that nobody gives."""

    def __init__(self, drop):
        self.inner = Block()
        self.dropout = drop

    def __call__(self, x):
        return (
            self.inner.head(self.inner.drop(self.inner.layer(x.mean((1, 2))), deterministic=False))
            if self.dropout
            else self.inner.run(x, True)
        )


@pytest.mark.parametrize(
    ("drop", "why"),
    [
        (True, "its logits depend on a random key of its own"),
        (False, "it changes 'inner.norm.mean'"),
    ],
)
def test_an_nnx_network_that_trains_all_the_same_is_refused(drop, why, images):
    model = from_nnx(Inside(drop))
    for function in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=rf"{TRAINS} \({why}\)"):
            function(model.params, images)


class Draws(Block):
    """Draws a key of its own at every call, of which nothing comes in evaluation."""

    def __call__(self, x):
        self.drop.rngs() if hasattr(self.drop.rngs, "key") else self.drop.rngs.dropout()
        return self.run(x)


def test_a_key_that_is_drawn_for_nothing_is_no_harm(images):
    model = from_nnx(Draws())
    assert model.apply(model.params, images).shape == (5, 2)


def test_an_argument_that_is_not_offered_is_named():
    class Masked(Block):
        def __call__(self, x, mask):
            return self.run(x)

    with pytest.raises(
        ValueError,
        match="Masked: its call needs 'mask', which is not offered; it gets images, switches such "
        "as train, and a key: give 'mask' a default",
    ):
        from_nnx(Masked())


# Linen


class LinenNet(linen.Module):
    norm: bool = True

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.Dense(4)(x.mean((1, 2)))
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))


class LinenIsTrain(linen.Module):
    @linen.compact
    def __call__(self, x, is_train: bool = True):
        return LinenNet()(x, train=is_train)


class LinenPasses(linen.Module):
    norm: bool = True

    @linen.compact
    def __call__(self, x, **kwargs):
        return LinenNet(self.norm)(x, **kwargs)


class LinenField(linen.Module):
    training: bool = True
    norm: bool = True

    @linen.compact
    def __call__(self, x):
        return LinenNet(self.norm)(x, train=self.training)


class LinenMerges(linen.Module):
    """The field or the argument, as Flax's own layers have it."""

    train: bool | None = None

    @linen.compact
    def __call__(self, x, train: bool | None = None):
        return LinenNet()(x, train=linen.merge_param("train", self.train, train))


class LinenNoise(linen.Module):
    """Draws from a stream of a name of its own, for nothing where `train` is off."""

    noisy: bool = False

    @linen.compact
    def __call__(self, x, train: bool = True):
        noise = jax.random.normal(self.make_rng("noise"), (2,))
        return linen.Dense(2)(x.mean((1, 2))) + (noise if train or self.noisy else 0)


def linen_model(module, images):
    streams = {"params": KEY, "dropout": KEY, "noise": KEY}
    variables = module.init(
        streams,
        images,
        **({"train": False} if isinstance(module, LinenMerges) and module.train is None else {}),
    )
    return from_linen(module, variables)


@pytest.mark.parametrize(
    "module",
    [
        LinenNet(),
        LinenIsTrain(),
        LinenField(training=False),
        LinenField(training=False, norm=False),
        LinenMerges(),
        LinenMerges(train=False),
        LinenNoise(),
    ],
    ids=repr,
)
def test_a_linen_network_evaluates(module, images):
    model = linen_model(module, images)
    together, alone = (
        jax.jit(model.apply)(model.params, images),
        jnp.concatenate([model.apply(model.params, image[None]) for image in images]),
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(
        model.apply(model.params, images), model.apply(model.params, images)
    )


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (LinenPasses(), "Cannot update variable"),
        (LinenField(), "Cannot update variable"),
        (LinenMerges(train=True), "Cannot update variable"),
        (LinenPasses(norm=False), "its logits depend on random numbers"),
        (LinenField(norm=False), "its logits depend on random numbers"),
        (LinenNoise(noisy=True), "its logits depend on random numbers"),
    ],
    ids=repr,
)
def test_a_linen_network_that_trains_all_the_same_is_refused(module, why, images):
    model = linen_model(module, images)
    for function in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=rf"module: {TRAINS} \(.*{why}"):
            function(model.params, images)


class LinenTold(linen.Module):
    """Evaluates unless it is told in a way that cannot be seen."""

    @linen.compact
    def __call__(self, x, **kwargs):
        return LinenNet()(x, train=kwargs.get("train", False))


@pytest.mark.parametrize(
    ("module", "moves"),
    [(LinenNet(), True), (LinenTold(), False), (LinenField(training=False), False)],
    ids=repr,
)
def test_statistics_that_training_would_leave_as_they_are_are_no_training(module, moves, images):
    model, labels = linen_model(module, images), np.arange(len(images)) % 2
    setting = OptimizerConfig(0.01)
    train = functools.partial(finetune, model, images, labels, setting, 2)
    if moves:
        assert np.isfinite(train(train_statistics=True).loss).all()
        return
    with pytest.raises(ValueError, match=r"leaves '[\w.]*BatchNorm_0.mean' and all other .*frozen"):
        train(train_statistics=True)
    assert np.isfinite(train().loss).all()


# Equinox


class Base(eqx.Module):
    layer: eqx.nn.Linear
    drop: eqx.nn.Dropout

    def __init__(self):
        self.layer, self.drop = eqx.nn.Linear(48, 2, key=KEY), eqx.nn.Dropout(0.5)

    def run(self, x, key):
        return self.layer(self.drop(x.reshape(-1), key=key))


class EqxPositional(Base):
    def __call__(self, x, key):
        return self.run(x, key)


class EqxPositionOnly(Base):
    def __call__(self, x, key, /):
        return self.run(x, key)


class EqxKeywordOnly(Base):
    def __call__(self, x, *, key):
        return self.run(x, key)


class EqxOptional(Base):
    def __call__(self, x, *, key=None):
        return self.run(x, key)


class EqxSplits(Base):
    def __call__(self, x, rng):
        return self.run(x, jax.random.split(rng)[0])


class EqxSplitsByDefault(Base):
    """Wants a key although it has a default."""

    def __call__(self, x, key=None):
        return self.run(x, jax.random.split(key)[0])


class EqxKeyMeansTraining(Base):
    def __call__(self, x, key):
        x = x.reshape(-1)
        return self.layer(x if key is None else x * jax.random.bernoulli(key, 0.5, x.shape))


class EqxSwitch(Base):
    def __call__(self, x, inference: bool = False, *, key=None):
        x = x.reshape(-1)
        return self.layer(x if inference else x * jax.random.bernoulli(key, 0.5, x.shape))


class EqxAttribute(Base):
    training: bool

    def __init__(self):
        super().__init__()
        self.training = True

    def __call__(self, x, key):
        x = x.reshape(-1)
        return self.layer(x * jax.random.bernoulli(key, 0.5, x.shape) if self.training else x)


class EqxNested(eqx.Module):
    inner: list

    def __init__(self):
        self.inner = [EqxOptional()]

    def __call__(self, x, key):
        return self.inner[0](x, key=key)


@pytest.mark.parametrize(
    "network",
    [
        EqxPositional,
        EqxPositionOnly,
        EqxKeywordOnly,
        EqxOptional,
        EqxSplits,
        EqxSplitsByDefault,
        EqxKeyMeansTraining,
        EqxSwitch,
        EqxAttribute,
        EqxNested,
    ],
)
def test_an_equinox_network_evaluates(network, images):
    module = network()
    layer = module.inner[0].layer if isinstance(module, EqxNested) else module.layer
    expected = jnp.moveaxis(images, -1, 1).reshape(5, -1) @ layer.weight.T + layer.bias
    model = from_equinox(module)
    for function in (model.apply, jax.jit(model.apply)):
        np.testing.assert_allclose(function(model.params, images), expected, atol=1e-5)
    jax.jacrev(model.apply)(model.params, images[:1])


class EqxNorm(eqx.Module):
    """Batch norm with a state; `always` normalises by the batch whatever is asked for."""

    norm: eqx.nn.BatchNorm
    layer: eqx.nn.Linear
    always: bool = eqx.field(static=True)

    def __init__(self, always=False):
        self.norm, self.layer, self.always = (
            eqx.nn.BatchNorm(3, "batch", mode="ema"),
            eqx.nn.Linear(3, 2, key=KEY),
            always,
        )

    def __call__(self, x, state, key):
        x, state = self.norm(x, state, inference=False if self.always else None)
        return self.layer(x.mean((1, 2))), state


def test_equinox_batch_norm_evaluates_or_is_refused(images):
    module, state = eqx.nn.make_with_state(EqxNorm)()
    _, state = jax.vmap(module, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))(
        jnp.moveaxis(images, -1, 1), state, KEY
    )
    model = from_equinox(module, state)
    np.testing.assert_allclose(
        model.apply(model.params, images)[:1],
        jax.jit(model.apply)(model.params, images[:1]),
        atol=1e-5,
    )
    logits, new = model.batch_statistics.apply_train(
        model.params, model.batch_statistics.state, images
    )
    assert logits.shape == (5, 2)
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new["state"]), jax.tree.leaves(state), strict=True)
    )
    trains = from_equinox(*eqx.nn.make_with_state(EqxNorm)(True))
    for function in (trains.apply, jax.jit(trains.apply)):
        with pytest.raises(ValueError, match=rf"module: {TRAINS} \(it changes"):
            function(trains.params, images)


def test_a_state_that_is_not_given_is_asked_for():
    with pytest.raises(
        ValueError,
        match=r"module: EqxNorm keeps a state, as batch norm does; make it with module, state = "
        r"eqx\.nn\.make_with_state\(EqxNorm\)",
    ):
        from_equinox(EqxNorm())


class EqxNoise(Base):
    def __call__(self, x, key):
        return self.layer(x.reshape(-1)) + jax.random.normal(key, (2,))


def test_an_equinox_network_that_is_always_random_is_refused(images):
    model = from_equinox(EqxNoise())
    with pytest.raises(ValueError, match=rf"module: {TRAINS} \(its logits depend on 'key'\)"):
        model.apply(model.params, images)


# plain functions


def plain(params, x, train=True):
    return x.mean((1, 2)) @ params["w"] + (1 if train else 0)


def haiku(params, rng, x, *, is_training):
    return x.mean((1, 2)) @ params["w"] + (jax.random.normal(rng, (2,)) if is_training else 0)


def needs_key(params, x, *, key):
    jax.random.split(key)
    return x.mean((1, 2)) @ params["w"]


@pytest.mark.parametrize("function", [plain, haiku, needs_key])
def test_a_function_evaluates(function, images):
    params = {"w": jnp.ones((3, 2))}
    model = from_function(function, params)
    np.testing.assert_allclose(
        model.apply(model.params, images), images.mean((1, 2)) @ params["w"], atol=1e-6
    )


def test_a_random_function_is_refused(images):
    model = from_function(
        lambda params, x, *, key: x.mean((1, 2)) @ params["w"] + jax.random.normal(key, (2,)),
        {"w": jnp.ones((3, 2))},
    )
    with pytest.raises(ValueError, match=r"its logits depend on 'key'"):
        model.apply(model.params, images)
