"""Networks of Linen, Equinox and plain functions give what their own library gives; the examples
run to the end; factories are checked.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk_tt
from ntk_tt.models import Model
from ntk_tt.models.adapters import from_function
from ntk_tt.models.equinox_adapter import from_equinox
from ntk_tt.models.factory import load_factory
from ntk_tt.models.linen_adapter import from_linen
from ntk_tt.models.lora import LoRA
from ntk_tt.models.trainable import restrict
from ntk_tt.prediction.setup import Setup, load
from ntk_tt.runtime.parameter_names import named_leaves

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (6, 8, 8, 3))


# Linen


class Linen(nn.Module):
    """With batch norm and dropout."""

    width: int = 4

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(
            nn.Conv(self.width, (3, 3), strides=4)(x)
        )
        x = nn.Dropout(0.5, deterministic=not train)(jax.nn.gelu(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def linen(images):
    module = Linen()
    variables = dict(jax.jit(lambda: module.init({"params": KEY}, images, train=False))())
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    return (
        module,
        variables,
        from_linen(module, variables, num_classes=3, name="mine", mean=(0.0, 0.0, 0.0)),
    )


def test_linen_evaluates_as_the_module_does(linen, images):
    module, variables, model = linen
    expected = jax.jit(lambda: module.apply(variables, images, train=False))()
    np.testing.assert_allclose(jax.jit(model.apply)(model.params, images), expected, atol=1e-6)
    statistics = model.batch_statistics
    np.testing.assert_allclose(
        jax.jit(statistics.apply_eval)(model.params, statistics.state, images), expected, atol=1e-6
    )
    assert sorted(named_leaves(model.params)) == [
        "BatchNorm_0.bias",
        "BatchNorm_0.scale",
        "Conv_0.bias",
        "Conv_0.kernel",
        "head.bias",
        "head.kernel",
    ]
    assert (model.name, model.num_classes, model.mean, model.apply_features) == (
        "mine",
        3,
        (0.0, 0.0, 0.0),
        None,
    )


def test_linen_trains_its_statistics(linen, images):
    module, variables, model = linen
    statistics = model.batch_statistics
    train = jax.jit(statistics.apply_train)
    logits, state = train(model.params, statistics.state, images)
    _, expected = jax.jit(
        lambda: module.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
        )
    )()
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6),
        state["collections"],
        expected,
    )
    moved = jax.tree.map(
        lambda one, two: float(jnp.abs(one - two).max()),
        state["collections"]["batch_stats"],
        variables["batch_stats"],
    )
    assert min(jax.tree.leaves(moved)) > 1e-3
    again, _ = train(model.params, statistics.state, images)
    np.testing.assert_array_equal(logits, again)  # pure
    other, _ = train(model.params, {**statistics.state, "step": state["step"]}, images)
    assert np.abs(logits - other).max() > 1e-3  # another mask of dropout at the next step


def test_linen_without_statistics_has_none():
    module = nn.Dense(3)
    model = from_linen(module, module.init(KEY, jnp.zeros((1, 4))))
    assert model.batch_statistics is None
    assert model.name == "Dense"
    assert model.apply_features is None  # its attribute `features` is a width, no method
    x = jnp.ones((2, 4))
    np.testing.assert_allclose(
        model.apply(model.params, x), x @ model.params["kernel"] + model.params["bias"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("module", "variables", "message"),
    [
        (
            lambda x: x,
            {"params": {"w": jnp.ones(2)}},
            "module: must be a flax.linen.Module, got something of type function; for flax.nnx "
            "take from_nnx",
        ),
        (
            nn.Dense(3),
            {"batch_stats": {}},
            "variables: there are no 'params' among 'batch_stats'; give what module.init",
        ),
        (nn.Dense(3), {}, "variables: there are no 'params' among nothing"),
    ],
)
def test_what_linen_cannot_be_made_of_is_refused(module, variables, message):
    with pytest.raises(ValueError, match=message):
        from_linen(module, variables)


def test_an_unknown_field_is_refused():
    with pytest.raises(
        ValueError, match="description: unknown 'classes'; known: name, num_classes"
    ):
        from_function(lambda params, x: x, {"w": jnp.ones(2)}, classes=3)  # type: ignore[call-arg]


# Equinox


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    layers: list
    table: jax.Array

    def __init__(self, *, key):
        self.conv = eqx.nn.Conv2d(3, 4, 3, stride=4, key=key)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch", momentum=0.5)
        self.dropout = eqx.nn.Dropout(0.5)
        self.layers = [eqx.nn.Linear(4, 3, key=key)]
        self.table = jnp.arange(3)  # integers do not train

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.conv(x), state)
        return self.layers[0](
            self.dropout(jax.nn.gelu(x).mean(axis=(1, 2)), key=key)
        ) + self.table, state


@pytest.fixture(scope="module")
def equinox(images):
    module, state = eqx.nn.make_with_state(Equinox)(key=KEY)
    # The images are an argument: jaxlib 0.8.0 folds a convolution of constants to a wrong result.
    train = eqx.filter_jit(
        lambda x, state: jax.vmap(
            lambda x, key: module(x, state, key=key), axis_name="batch", out_axes=(0, None)
        )(x, jax.random.split(KEY, 6))
    )
    return module, train(images.transpose(0, 3, 1, 2), state)[1], from_equinox(module, state)


def test_equinox_evaluates_as_the_module_does(equinox, images):
    module, state, _ = equinox  # the state of one step of training: not what it starts from
    model = from_equinox(module, state)
    inference = eqx.nn.inference_mode(module)
    expected = np.stack([inference(image.transpose(2, 0, 1), state)[0] for image in images[:2]])
    for _ in range(2):  # the state is not used up
        np.testing.assert_allclose(model.apply(model.params, images[:2]), expected, atol=1e-5)
    statistics = model.batch_statistics
    np.testing.assert_allclose(
        jax.jit(statistics.apply_eval)(model.params, statistics.state, images[:2]),
        expected,
        atol=1e-5,
    )
    assert list(named_leaves(model.params)) == [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "layers.0.weight",
        "layers.0.bias",
    ]


def test_equinox_trains_its_state(equinox, images):
    _, expected, model = equinox
    statistics = model.batch_statistics
    step = jax.jit(statistics.apply_train)
    logits, state = step(model.params, statistics.state, images)
    arrays = [leaf for leaf in jax.tree.leaves(state["state"]) if eqx.is_inexact_array(leaf)]
    for one, two in zip(
        arrays,
        [leaf for leaf in jax.tree.leaves(expected) if eqx.is_inexact_array(leaf)],
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert not np.allclose(
        arrays[0],
        next(leaf for leaf in jax.tree.leaves(statistics.state) if eqx.is_inexact_array(leaf)),
    )
    np.testing.assert_array_equal(step(model.params, statistics.state, images)[0], logits)
    assert (
        np.abs(
            step(model.params, {**statistics.state, "step": state["step"]}, images)[0] - logits
        ).max()
        > 1e-3
    )


def test_equinox_without_state_and_with_channels_last(images):
    mlp = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    model = from_equinox(mlp)
    rows = images[:4, 0, 0]
    assert model.batch_statistics is None
    np.testing.assert_allclose(
        model.apply(model.params, rows), np.stack([mlp(row) for row in rows]), atol=1e-6
    )
    mean = from_equinox(
        eqx.nn.Sequential(
            [eqx.nn.Lambda(lambda x: x.mean(axis=(0, 1))), eqx.nn.Linear(3, 2, key=KEY)]
        ),
        channels_first=False,
    )
    assert mean.apply(mean.params, images).shape == (6, 2)
    weight, bias = mean.params.layers[1].weight, mean.params.layers[1].bias
    np.testing.assert_allclose(
        mean.apply(mean.params, images), images.mean(axis=(1, 2)) @ weight.T + bias, atol=1e-6
    )


def test_what_equinox_cannot_be_made_of_is_refused(unchecked):
    with pytest.raises(
        ValueError, match=r"module: must be a callable equinox\.Module, got something of type dict"
    ):
        from_equinox({"w": jnp.ones(2)})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match="module: Lambda has no floating-point arrays, so there is nothing to train",
    ):
        from_equinox(eqx.nn.Lambda(jnp.sin))


def test_parts_of_an_equinox_network_train(equinox, images):
    """Its tree is a module, not a dict, and its convolution kernels have the outputs first."""
    model = equinox[2]
    restricted = restrict(model, [LoRA(2), "regex:^norm"])
    assert list(named_leaves(restricted.params)) == [
        f"lora.{name}.{factor}" for name in ("conv.weight", "layers.0.weight") for factor in "ab"
    ] + ["trained.norm.weight", "trained.norm.bias"]
    assert restricted.params["lora"]["conv.weight"]["b"].shape == (2, 4)
    np.testing.assert_allclose(
        restricted.apply(restricted.params, images), model.apply(model.params, images), atol=1e-6
    )


# plain functions


def test_a_function_is_taken_as_it_is(images):
    params = {"w": np.ones((3, 2), np.float32)}
    model = from_function(
        lambda params, x: x.mean((1, 2)) @ params["w"],
        params,
        features=lambda params, x: x.mean((1, 2)),
        num_classes=2,
    )
    assert isinstance(model.params["w"], jax.Array)
    np.testing.assert_allclose(model.features(model.params, images), images.mean((1, 2)), atol=1e-6)
    assert model.apply(model.params, images).shape == (6, 2)


@pytest.mark.parametrize(
    ("apply", "params", "message"),
    [
        (3, {"w": jnp.ones(2)}, r"apply: must be a function \(params, images\) -> logits, got int"),
        (
            len,
            {"w": jnp.ones(2), "steps": jnp.arange(3)},
            "params: 'steps' is an array of int32, which cannot be trained; keep only "
            "floating-point arrays",
        ),
        (len, {"w": "kernel"}, "params: 'w' is something of type str, which cannot be trained"),
        (len, {}, "params: the tree has no arrays"),
    ],
)
def test_what_is_no_network_is_refused(apply, params, message, unchecked):
    with pytest.raises(ValueError, match=message):
        from_function(apply, params)


# the examples, end to end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "head", "has_features", "has_statistics"),
    [
        ("nnx_model.py", "head.kernel", True, True),
        ("linen_model.py", "head.kernel", True, True),
        ("equinox_model.py", "head.weight", True, True),
        ("plain_function.py", "head.kernel", False, False),
    ],
)
def test_an_example_runs_from_features_to_real_training(file, head, has_features, has_statistics):
    """At a small step the prediction is right to a twentieth of the loss's fall."""
    model = load_factory(f"{EXAMPLES / file}:factory", num_classes=3, image_size=16, key=KEY)
    assert head in named_leaves(model.params)
    assert (model.num_classes, model.image_size) == (3, 16)
    assert (model.apply_features is not None, model.batch_statistics is not None) == (
        has_features,
        has_statistics,
    )
    task = ntk_tt.load_task("digits", num_classes=3, per_class=3, image_size=16)
    images = model.preprocess(task.images)
    problem = ntk_tt.surrogate.linearize(
        model,
        images,
        task.labels,
        options=ntk_tt.FeatureOptions(num_projections="exact"),
    )
    optimizer = ntk_tt.OptimizerConfig(0.001, momentum=0.5)
    prediction = ntk_tt.prediction.predict(problem, optimizer, 10)
    real = ntk_tt.finetune(model, images, task.labels, optimizer, 10)
    fall = real.loss[0] - real.loss[-1]
    assert fall > 1e-4
    np.testing.assert_allclose(prediction.loss, real.loss, rtol=0, atol=0.05 * fall)


@pytest.mark.slow
def test_an_example_trains_with_its_batch_statistics():
    model = load_factory(
        f"{EXAMPLES / 'equinox_model.py'}:factory", num_classes=2, image_size=8, key=KEY
    )
    task = ntk_tt.load_task("digits", num_classes=2, per_class=3, image_size=8)
    images, optimizer = model.preprocess(task.images), ntk_tt.OptimizerConfig(0.05)
    frozen, training = (
        ntk_tt.finetune(model, images, task.labels, optimizer, 3, train_statistics=train)
        for train in (False, True)
    )
    # both begin with the statistics as given
    assert training.loss[0] == pytest.approx(frozen.loss[0], rel=1e-5)
    assert abs(training.loss[-1] - frozen.loss[-1]) > 1e-3


# factories


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(
        "import jax, jax.numpy as jnp\nfrom flax import linen, nnx\n" + text
    )
    return f"{folder / 'mine.py'}:factory"


PLAIN = "apply = lambda params, x: x.mean((1, 2)) @ params\n"


@pytest.mark.parametrize(
    "text",
    [
        "from ntk_tt import from_function\ndef factory(num_classes): return "
        "from_function(apply, jnp.ones((3, num_classes)), num_classes=num_classes)",
        "def factory(num_classes, width=3): return apply, jnp.ones((width, num_classes))",
        "def factory(**options): return apply, jnp.ones((3, options['num_classes']))",
        "factory = lambda num_classes, image_size, key: (apply, jax.random.normal(key, (3, "
        "num_classes)) * 0 + image_size / 8)",
        "class factory(nnx.Module):\n  def __init__(self, num_classes): self.w = "
        "nnx.Param(jnp.ones((3, num_classes)))\n  def __call__(self, x): return apply(self.w[...], "
        "x)",
        "class Mean(linen.Module):\n  def __call__(self, x): return x.mean((1, 2))\n"
        "def factory(num_classes):\n  module = linen.Sequential([Mean(), linen.Dense(num_classes, "
        "kernel_init=linen.initializers.ones)])\n  return module, module.init(jax.random.key(0), "
        "jnp.ones((1, 8, 8, 3)))",
        "import equinox as eqx\nclass factory(eqx.Module):\n  w: jax.Array\n  def __init__(self, "
        "num_classes): self.w = jnp.ones((3, num_classes))\n  def __call__(self, x): return "
        "x.mean((1, 2)) @ self.w",
        "from beside import apply as other\ndef factory(num_classes): return other, jnp.ones((3, "
        "num_classes))",
    ],
)
def test_a_factory_may_return_any_network(text, tmp_path, images):
    (tmp_path / "beside.py").write_text(PLAIN)
    model = load_factory(write(tmp_path, PLAIN + text), num_classes=2, image_size=8)
    assert isinstance(model, Model)
    assert model.num_classes == 2
    np.testing.assert_allclose(
        model.apply(model.params, images),
        np.repeat(images.mean((1, 2)).sum(-1, keepdims=True), 2, axis=1),
        atol=1e-5,
    )


def test_what_a_factory_does_not_say_is_said(tmp_path):
    plain = load_factory(
        write(
            tmp_path, PLAIN + "def factory(num_classes): return apply, jnp.ones((3, num_classes))"
        ),
        num_classes=2,
        image_size=8,
    )
    assert (
        plain.note
        == "images are normalised by ImageNet's mean and standard deviation, since 'factory' does "
        "not say otherwise; return ntk_tt.from_nnx(…, mean=…, std=…) or its like"
    )
    said = load_factory(
        write(
            tmp_path,
            PLAIN + "from ntk_tt import from_function\ndef factory(num_classes): return "
            "from_function(apply, jnp.ones((3, num_classes)), mean=(0.0, 0.0, 0.0))",
        ),
        num_classes=2,
        image_size=8,
    )
    assert said.note == ""


HEADED = """from ntk_tt import from_nnx
class Net(nnx.Module):
  def __init__(self, num_classes):
    self.layers = nnx.List([nnx.Linear(3, num_classes, rngs=nnx.Rngs(0))])
  def __call__(self, x): return self.layers[0](x.mean((1, 2)))
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("from_nnx(Net(num_classes), head='layers.0')", None),
        (
            "Net(num_classes)",
            "factory does not say where its linear head is, so 'zero' cannot be applied; leave "
            "--head out",
        ),
        (
            "from_nnx(Net(num_classes), head='layers.3')",
            "Net does not say where its linear head is",
        ),
        ("from_nnx(Net(num_classes), head='no.such')", "does not say where its linear head is"),
    ],
)
def test_a_rule_for_the_head_is_applied_to_a_network_of_ones_own_or_refused(
    factory, message, tmp_path
):
    reference = write(tmp_path, HEADED + f"def factory(num_classes): return {factory}")
    setup = Setup(model=reference, head="zero", classes=2, per_class=2, image_size=8)
    if message is None:
        model = load(setup).model
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(model.params))
        assert np.asarray(
            load(dataclasses.replace(setup, head="lecun")).model.params["layers"][0]["kernel"]
        ).any()
        assert np.asarray(
            load(dataclasses.replace(setup, head="pytorch")).model.params["layers"][0]["kernel"]
        ).any()
    else:
        with pytest.raises(
            ValueError,
            match=f"head: {message}" if message.startswith(("factory", "Net")) else message,
        ):
            load(setup)


def test_a_factory_gets_the_key(tmp_path):
    reference = write(
        tmp_path,
        PLAIN
        + "def factory(num_classes, key): return apply, jax.random.normal(key, (3, num_classes))",
    )
    one, two, default = (
        load_factory(reference, num_classes=2, image_size=8, **more).params
        for more in ({"key": KEY}, {"key": jax.random.key(4)}, {})
    )
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(
        default, load_factory(reference, num_classes=2, image_size=8, key=jax.random.key(0)).params
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def other(): pass\ndef _hidden(): pass",
            r"model: .*mine\.py has no 'factory'; it has the functions other$",
        ),
        (
            "factory = 3",
            r"model: 'factory' in .*mine\.py is something of type int; give a function that makes "
            r"the network",
        ),
        (
            "factory = (",
            r"model: '.*mine\.py' cannot be imported: it failed with SyntaxError: .* \(line 3\); "
            r"correct it",
        ),
        (
            "import no_such_package",
            r"cannot be imported: it failed with ModuleNotFoundError: No module named "
            r"'no_such_package' \(line 3\)",
        ),
        (
            "def factory(depth): pass",
            r"model: 'factory' in '.*mine\.py' needs 'depth', which is not offered; take only "
            r"num_classes, image_size and key",
        ),
        (
            "def factory(num_classes):\n  return 1 / 0",
            r"model: 'factory' failed with ZeroDivisionError: division by zero \(line 4\); correct "
            r"it",
        ),
        (
            "def factory():\n  raise SystemExit(0)",
            r"model: 'factory' failed with SystemExit: 0 \(line 4\); correct it",
        ),
        ("raise SystemExit", r"cannot be imported: it failed with SystemExit \(line 3\)"),
        (
            "class Net(linen.Module):\n  @linen.compact\n  def __call__(self, x): return "
            "linen.Dense(2)(linen.BatchNorm(use_running_average=False)(x.mean((1, 2))))\n"
            "def factory(): return Net(), Net().init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))",
            "model: of '.*:factory': module: the network runs in training mode: "
            "give its call train",
        ),
        (
            "def factory(): return 3",
            "model: '.*:factory' returned something of type int; return a Model, an nnx or Equinox "
            "module",
        ),
        (
            "def factory(): return 1, 2",
            r"model: '.*:factory' returned \(something of type int, something of type int\); "
            r"return a Model",
        ),
        (
            "def factory(): return linen.Dense(2)",
            r"model: '.*:factory' returned something of type Dense; return \(module, variables\), "
            r"with its weights",
        ),
        (
            PLAIN + "def factory(): return apply, jnp.ones((3, 5))",
            r"model: the network of '.*:factory' maps 2 images to \(2, 5\), where logits of 2 "
            r"classes, \(2, 2\), are needed; use num_classes in 'factory'",
        ),
        (
            PLAIN + "def factory(): return apply, jnp.ones((4, 2))",
            r"does not run on images of shape \(N, 8, 8, 3\): it failed with TypeError: .* \(line "
            r"3\); correct it",
        ),
    ],
)
def test_a_factory_that_fails_is_explained_in_a_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_factory(write(tmp_path, text), num_classes=2, image_size=8)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "nothing.py:factory",
            r"model: there is no file 'nothing\.py'; give path/to/file\.py:function",
        ),
        ("nothing.py", r"model: cannot read 'nothing\.py'; give path/to/file\.py:function"),
        ("nothing.py:", r"model: cannot read 'nothing\.py:'"),
        ("README.md:factory", r"model: cannot read 'README\.md:factory'"),
    ],
)
def test_what_is_no_reference_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        load_factory(reference, num_classes=2, image_size=8)
