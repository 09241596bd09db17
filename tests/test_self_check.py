"""What is told before a pass: samples that see each other, randomness, and gradients that are not
those of JAX.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_tt
from ntk_tt import load_model
from ntk_tt.jacobian import layers_of_taps as layer_rules
from ntk_tt.jacobian.bfloat16 import in_bfloat16
from ntk_tt.jacobian.layers import Formed, Windows
from ntk_tt.jacobian.self_check import _two_samples, check_pass
from tests.networks import CASES, Case, mlp, normal

X = normal(0, 7, 6, 6, 3)
PARAMS = {"w": 0.1 * normal(1, 108, 8), "head": 0.3 * normal(2, 8, 3)}


def hidden(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["w"])


def normalised(h, axes=0):
    return (h - h.mean(axes)) / (h.std(axes) + 1e-3)


def attention_over_the_batch(h):
    return jax.nn.softmax(h @ h.T) @ h


DEPENDENT = {
    "batch norm": lambda p, x: normalised(hidden(p, x)) @ p["head"],
    "batch norm of the outputs": lambda p, x: normalised(hidden(p, x) @ p["head"]),
    "batch norm of images": lambda p, x: hidden(p, normalised(x, (0, 1, 2))) @ p["head"],
    "a little of the mean": lambda p, x: (hidden(p, x) - 0.01 * hidden(p, x).mean(0)) @ p["head"],
    "the maximum": lambda p, x: hidden(p, x / jnp.abs(x).max()) @ p["head"],
    "attention": lambda p, x: attention_over_the_batch(hidden(p, x)) @ p["head"],
    "the place in the batch": lambda p, x: (
        hidden(p, x + 0.1 * jnp.arange(len(x))[:, None, None, None]) @ p["head"]
    ),
    "the size of the batch": lambda p, x: hidden(p, x) @ p["head"] * (2.0 if len(x) > 1 else 1.0),
    "the next sample": lambda p, x: (hidden(p, x) + 0.1 * jnp.roll(hidden(p, x), 1, 0)) @ p["head"],
    "dropout with a key": lambda p, x: (
        jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 8)), hidden(p, x), 0)
        @ p["head"]
    ),
}


@pytest.mark.slow_but("batch norm", "attention", "the size of the batch")
@pytest.mark.parametrize("name", DEPENDENT)
def test_samples_that_see_each_other_are_refused(name):
    with pytest.raises(
        ValueError, match="apply: the output of a sample depends on the others in its batch"
    ):
        check_pass(DEPENDENT[name], PARAMS, X)


@pytest.mark.slow_but("<lambda>1")
@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: hidden(p, x[jnp.argsort((x**2).sum((1, 2, 3)))]) @ p["head"],
        lambda p, x: hidden(p, x[jnp.argsort(-(x**2).sum((1, 2, 3)))]) @ p["head"],
        lambda p, x: hidden(p, x) @ p["head"] * (2.0 if len(x) > 2 else 1.0),
        lambda p, x: (hidden(p, x) + hidden(p, jnp.roll(x, 3, 0)) * (len(x) > 3)) @ p["head"],
    ],
)
def test_what_only_a_larger_batch_shows_is_seen_where_there_is_one(apply):
    """The order that batches are sorted to, their size, neighbours further off: `linearize` has the
    outputs of all samples.
    """
    with pytest.raises(
        ValueError,
        match="apply: the output of a sample depends on the others in its batch: in a batch of",
    ):
        ntk_tt.surrogate.linearize(ntk_tt.from_function(apply, PARAMS), X, np.arange(7) % 3)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("identical", [False, True])
def test_few_and_identical_samples_are_enough_to_see_it(number, identical):
    x = jnp.broadcast_to(X[:1], (number, *X.shape[1:])) if identical else X[:number]
    with pytest.raises(ValueError, match="apply: the output of a sample depends"):
        check_pass(DEPENDENT["batch norm of images"], PARAMS, x)
    check_pass(lambda p, x: hidden(p, x) @ p["head"], PARAMS, x)


def test_a_head_of_zeros_hides_nothing():
    """The outputs are zero for every batch, but the gradients are not."""
    with pytest.raises(
        ValueError,
        match=r"apply: the gradient of a sample depends on the others in its batch: that of 'head'",
    ):
        check_pass(DEPENDENT["batch norm"], PARAMS | {"head": jnp.zeros((8, 3))}, X)


def _expand(features):
    params = PARAMS | {"head": {"kernel": PARAMS["head"]}}
    model = ntk_tt.from_function(
        lambda p, x: features(p, x) @ p["head"]["kernel"], params, num_classes=3
    )
    ntk_tt.surrogate.expand(
        dataclasses.replace(model, apply_features=features, head="head"), X, np.arange(7) % 3
    )


ENTRIES = {
    "jacobian_features": lambda features, path, folder: ntk_tt.features.jacobian_features(
        lambda p, x: features(p, x) @ p["head"], PARAMS, X, options=ntk_tt.FeatureOptions(path=path)
    ),
    "write_features": lambda features, path, folder: ntk_tt.features.write_features(
        lambda p, x: features(p, x) @ p["head"],
        PARAMS,
        X,
        folder,
        options=ntk_tt.FeatureOptions(path=path),
    ),
    "empirical_ntk": lambda features, path, folder: ntk_tt.kernels.empirical_ntk(
        lambda p, x: features(p, x) @ p["head"], PARAMS, X, path=path
    ),
    "linearize": lambda features, path, folder: ntk_tt.surrogate.linearize(
        ntk_tt.from_function(lambda p, x: features(p, x) @ p["head"], PARAMS),
        X,
        np.arange(7) % 3,
        outputs="contrasts",
    ),
    "expand": lambda features, path, folder: _expand(features),
}


@pytest.mark.slow_but(
    "structured-linearize", "structured-write_features", "plain-jacobian_features"
)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("path", ["structured", "plain"])
def test_every_entry_looks(entry, path, tmp_path):
    ENTRIES[entry](hidden, path, tmp_path)
    with pytest.raises(ValueError, match="apply: the output of a sample depends"):
        ENTRIES[entry](lambda p, x: hidden(p, normalised(x, (0, 1, 2))), path, tmp_path)


def test_networks_that_draw_random_numbers_are_refused():
    numbers = itertools.count()
    rng = np.random.default_rng(0)
    while_traced = lambda p, x: (hidden(p, x) * rng.integers(0, 2, 8)) @ p["head"]  # noqa: E731

    def when_called(p, x):
        drawn = jax.pure_callback(
            lambda: np.float32(next(numbers)),
            jax.ShapeDtypeStruct((), jnp.float32),
            vmap_method="sequential",
        )
        return hidden(p, x) @ p["head"] + drawn

    with pytest.raises(
        ValueError, match=r"apply: two calls with the same inputs give outputs that differ.*dropout"
    ):
        check_pass(while_traced, PARAMS, X)
    with pytest.raises(
        ValueError, match=r"apply: (two calls with the same inputs|the output of a sample depends)"
    ):
        check_pass(when_called, PARAMS, X, path="plain")


@pytest.mark.slow_but("convolution-structured-float32", "mlp-plain-float32")
@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        ("structured", jnp.float32),
        ("structured", jnp.bfloat16),
        ("structured", jnp.float16),
        ("plain", jnp.float32),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_networks_that_are_right_pass_in_every_type(name, dtype, path):
    case = CASES[name](3, dtype=dtype)
    check_pass(case.apply, case.params, case.inputs(4, 0), path=path)


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True])
def test_the_bundled_network_passes(rounded):
    model = load_model("resnet8", num_classes=4)
    x = normal(0, 4, 16, 16, 3)
    check_pass(in_bfloat16(model.apply) if rounded else model.apply, model.params, x)


def off_by(factor):
    return lambda rule: (
        lambda *given: (
            None
            if (layer := rule(*given)) is None
            else layer._replace(
                **{"value": factor * layer.value}
                if isinstance(layer, Formed)
                else {"activations": factor * layer.activations}
            )
        )
    )


def outputs_swapped(rule):
    return lambda *given: (
        None if (layer := rule(*given)) is None else layer._replace(signals=layer.signals[:, ::-1])
    )


def samples_swapped(rule):
    return lambda *given: (
        None
        if (layer := rule(*given)) is None
        else layer._replace(activations=layer.activations[::-1])
    )


FAULTS = {
    "a hundredth too large": ("_dense", off_by(1.01), "'head'|'w'"),
    "missing": ("_dense", off_by(0.0), "'head'|'w'"),
    "outputs taken for one another": ("_dense", outputs_swapped, "'head'|'w'"),
    "samples taken for one another": ("_dense", samples_swapped, "'head'|'w'"),
    "in a bias": (
        "_transposed",
        lambda rule: (
            lambda *given: [layer._replace(value=1.01 * layer.value) for layer in rule(*given)]
        ),
        "'bias'",
    ),
}


@pytest.mark.slow_but("missing", "in a bias")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_its_parameter_named(fault, monkeypatch):
    rule, change, name = FAULTS[fault]
    params = PARAMS | {"bias": jnp.ones(3)}
    monkeypatch.setattr(layer_rules, rule, change(getattr(layer_rules, rule)))
    with pytest.raises(
        ValueError,
        match=rf"params: the structured Jacobian of ({name}) differs from jax.vjp by .* take "
        r"path='plain'",
    ):
        ntk_tt.features.jacobian_features(
            lambda p, x: hidden(p, x) @ p["head"] + p["bias"], params, X
        )
    ntk_tt.features.jacobian_features(
        lambda p, x: hidden(p, x) @ p["head"] + p["bias"],
        params,
        X,
        options=ntk_tt.FeatureOptions(path="plain"),
    )


def test_a_planted_fault_in_a_convolution_is_found(monkeypatch):
    case = CASES["convolution"](3)
    monkeypatch.setattr(
        Windows,
        "patches",
        lambda windows, rule=Windows.patches: rule(windows)[..., ::-1, :],
    )
    with pytest.raises(ValueError, match=r"params: the structured Jacobian of 'conv[12]\.kernel'"):
        ntk_tt.kernels.empirical_ntk(case.apply, case.params, case.inputs(4, 0))


def test_gradients_that_cancel_are_no_fault():
    """A bias of attention's keys, or one before a layer norm, has no gradient but rounding."""

    def apply(p, x):
        x = x.reshape(len(x), 12, 9)
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", x @ p["q"], x @ p["k"] + p["key_bias"]))
        h = (weights @ x + p["shift"]).mean(1)
        return (h - h.mean(-1, keepdims=True)) @ p["head"]

    params = {
        name: normal(seed, 9, size)
        for seed, (name, size) in enumerate((("q", 4), ("k", 4), ("head", 3)))
    }
    check_pass(apply, params | {"key_bias": 10 * jnp.ones(4), "shift": jnp.ones(())}, X)


@pytest.mark.slow
def test_what_is_not_finite_is_an_error():
    root = lambda p, x: jnp.sqrt(hidden(p, x) ** 2) @ p["head"]  # noqa: E731
    x = X.at[5].set(0)  # not among what is looked at first: the root has no gradient at zero
    x = (
        jnp.concatenate(
            [jnp.repeat(x, 20, 0)[:99], jnp.zeros((1, 6, 6, 3)), jnp.repeat(x, 20, 0)[-40:]]
        )
        .at[95:99]
        .set(X[0])
    )
    for call in (
        lambda: ntk_tt.kernels.empirical_ntk(root, PARAMS, x),
        lambda: ntk_tt.features.jacobian_features(
            root, PARAMS, x, options=ntk_tt.FeatureOptions(num_projections=64)
        ),
        lambda: ntk_tt.surrogate.linearize(
            ntk_tt.from_function(root, PARAMS), x, np.arange(len(x)) % 3
        ),
    ):
        with pytest.raises(ValueError, match=r"params: the gradients? .*NaN or infinity"):
            call()
    with pytest.raises(ValueError, match="logits: the network gives NaN or infinity"):
        ntk_tt.kernels.empirical_ntk(lambda p, x: hidden(p, x) @ p["head"] / 0, PARAMS, X)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_the_samples_that_are_looked_at_differ(dtype):
    x = np.full((50, 4), 9, dtype)
    x[-1] = [1, 2, 3, 4]
    samples, numbers = _two_samples(x)
    assert numbers == [0, 49]
    np.testing.assert_array_equal(samples, x[[0, -1]])
    samples, numbers = _two_samples(x[-1:])  # alone: beside a changed copy of itself
    assert numbers == [0]
    np.testing.assert_array_equal(samples[1], [4, 3, 2, 1])


def test_a_callable_that_cannot_be_hashed_is_taken():
    class Network:
        __hash__ = None

        def __call__(self, params, x):
            return hidden(params, x) @ params["head"]

    check_pass(Network(), PARAMS, X)


# Axes of length one that a network drops


@pytest.mark.slow
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("number", [1, 4])
def test_squeezed_logits_are_what_they_are(num_outputs, number, tmp_path):
    whole, loss = mlp(num_outputs), "ce" if num_outputs > 1 else "mse"
    squeezed = Case(lambda p, x: whole.apply(p, x).squeeze(), whole.params, whole.inputs)
    x = whole.inputs(number, 0)
    labels = (
        np.arange(number) % num_outputs
        if loss == "ce"
        else np.linspace(-1, 1, number, dtype=np.float32)[:, None]
    )
    setting, results = ntk_tt.OptimizerConfig(0.1), []
    exact = ntk_tt.FeatureOptions(num_projections="exact")
    for case in (whole, squeezed):
        run = ntk_tt.finetune(case.model, x, labels, setting, 3, loss=loss, block_size=1)
        found = [run.loss, ntk_tt.kernels.empirical_ntk(case.apply, case.params, x)]
        if (number > 1) != (num_outputs > 1):  # one axis is left, which may be either
            problem = ntk_tt.surrogate.linearize(case.model, x, labels, loss=loss)
            verdict = ntk_tt.prediction.assess(problem, case.model, x, labels, setting, 3)
            found += [
                ntk_tt.prediction.predict(problem, setting, 3).loss,
                verdict.stability_margin,
            ]
        else:
            store = ntk_tt.features.write_features(
                case.apply, case.params, x, tmp_path / str(case is whole), options=exact
            )
            found += [
                np.concatenate([np.asarray(block) for block in store]),
                ntk_tt.kernels.empirical_ntk(case.apply, case.params, x, path="plain"),
            ]
        results.append(found)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), *results
    )


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            lambda p, x: (hidden(p, x) @ p["head"])[None],
            r"apply: must map \(params, inputs\) to logits of shape \(N, C\), got \(1, 2, 3\)",
        ),
        (lambda p, x: (hidden(p, x) @ p["head"]).astype(int), "apply: the logits have dtype int32"),
        (lambda p, x: hidden(p, x) @ p["head"] * 1j, "apply: the logits have dtype complex64"),
        (
            lambda p, x: hidden(p, x) @ p["head"][:, : len(x)],
            r"apply: must map \(1, …\) to \(1, 2\), got \(1, 1\)",
        ),
        (lambda p, x: {"logits": hidden(p, x) @ p["head"]}, "apply: must map"),
    ],
)
def test_outputs_of_another_form_are_told(apply, message):
    with pytest.raises(ValueError, match=message):
        ntk_tt.kernels.empirical_ntk(apply, PARAMS, X)


def test_gradients_that_are_not_finite_name_their_parameter():
    params = {"first": jnp.ones((3, 2)), "root": jnp.zeros(2), "zlast": jnp.ones(2)}

    def apply(params, x):
        return x @ params["first"] * jnp.sqrt(jnp.sum(params["root"] ** 2)) + params["zlast"]

    with pytest.raises(ValueError, match="gradients of 'root' hold NaN or infinity"):
        ntk_tt.kernels.empirical_ntk(apply, params, jnp.arange(12.0).reshape(4, 3))
