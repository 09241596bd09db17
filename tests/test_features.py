"""The feature pass: memory planned, features on disk, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features.compute import compute_features, jacobian_features
from ntk_tt.features.contrasts import contrast_basis, in_contrasts, stored_outputs
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.plan import plan_features
from ntk_tt.features.write import write_features
from ntk_tt.jacobian.bfloat16 import in_bfloat16, relative_error
from ntk_tt.models import load_model
from ntk_tt.optimizer import OptimizerConfig
from ntk_tt.prediction.one_setting import predict
from ntk_tt.surrogate.linear_pass import linearize
from tests.networks import convolutional, mlp


def case_and_inputs(number: int = 11):
    case = convolutional(3, norm=True)
    return case, np.asarray(case.inputs(number, 0))


@pytest.mark.slow
def test_a_plan_says_what_will_be_computed_and_computes_it():
    case, inputs = case_and_inputs()
    plan = plan_features(
        case.apply, case.params, inputs, options=FeatureOptions(num_projections=40, block_size=4)
    )
    assert (plan.num_samples, plan.num_outputs, plan.num_projections, plan.block_size) == (
        11,
        3,
        40,
        4,
    )
    assert plan.feature_bytes == 11 * 3 * 40 * 4
    assert plan.block_bytes >= 4 * 3 * 40 * 4  # at least its own result
    features = compute_features(plan, case.params, inputs)
    np.testing.assert_allclose(
        features,
        jacobian_features(
            case.apply, case.params, inputs, options=FeatureOptions(num_projections=40)
        ),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator takes larger blocks")
@pytest.mark.parametrize(("num_outputs", "num_projections"), [(2, 2048), (8, 4096), (4, 16384)])
def test_a_block_on_a_cpu_stays_below_what_the_allocator_keeps(num_outputs, num_projections):
    model = load_model("resnet8", num_classes=num_outputs)
    inputs = np.zeros((16, 32, 32, 3), np.float32)
    plan = plan_features(
        model.apply, model.params, inputs, options=FeatureOptions(num_projections=num_projections)
    )
    assert plan.block_bytes <= 32 << 20
    assert plan.block_size >= 7  # as many as fit, roughly


def test_the_block_shrinks_until_the_compiled_program_fits(monkeypatch):
    case, inputs = case_and_inputs(16)
    whole = plan_features(
        case.apply, case.params, inputs, options=FeatureOptions(num_projections=40)
    )
    assert whole.block_size == 16
    monkeypatch.setattr(
        "ntk_tt.features.plan.available_bytes",
        lambda: whole.feature_bytes + whole.block_bytes // 3,
    )
    monkeypatch.setattr("ntk_tt.features.plan._block_samples", lambda *_: 16)
    shrunk = plan_features(
        case.apply, case.params, inputs, options=FeatureOptions(num_projections=40)
    )
    assert shrunk.block_size < 16
    assert shrunk.block_bytes <= whole.block_bytes // 3
    np.testing.assert_allclose(
        compute_features(shrunk, case.params, inputs),
        compute_features(whole, case.params, inputs),
        rtol=1e-5,
        atol=1e-5,
    )


def test_what_cannot_fit_says_what_would():
    case, inputs = case_and_inputs()
    with pytest.raises(
        ValueError,
        match=r"memory: features of 11 samples × 3 outputs × D' = 64 need 8\.25 KiB, but 1.95 KiB "
        r"may be used.*num_projections = 15",
    ) as error:
        jacobian_features(
            case.apply, case.params, inputs, options=FeatureOptions(num_projections=64, memory=2000)
        )
    assert "store on disk" in str(error.value)
    assert (
        jacobian_features(
            case.apply, case.params, inputs, options=FeatureOptions(num_projections=15, memory=2000)
        ).shape[-1]
        == 15
    )
    # auto: what the budget allows
    assert (
        jacobian_features(
            case.apply, case.params, inputs, options=FeatureOptions(memory=2000)
        ).shape[-1]
        == 15
    )


def test_a_kernel_that_cannot_fit_says_so(monkeypatch):
    case, inputs = case_and_inputs()
    # the package has a function of that name
    monkeypatch.setattr("ntk_tt.surrogate.linear_pass.available_bytes", lambda: 4000)
    with pytest.raises(
        ValueError,
        match=r"memory: Θ of 33 rows \(4\.25 KiB\) and the features it is made of need 12\.5 KiB, "
        r"but 3\.91 KiB may be used; use space='primal'",
    ):
        linearize(
            case.model,
            inputs,
            np.arange(11) % 3,
            options=FeatureOptions(num_projections=64),
            space="dual",
        )
    assert (
        linearize(
            case.model,
            inputs,
            np.arange(11) % 3,
            options=FeatureOptions(num_projections=64),
        ).kernel.space
        == "primal"
    )


@pytest.mark.slow
def test_features_on_disk_are_those_in_memory_and_predict_the_same(tmp_path):
    case, inputs = case_and_inputs()
    labels = np.arange(11) % 3
    apply = stored_outputs(case.apply, 3, "contrasts")
    store = write_features(
        apply,
        case.params,
        inputs,
        tmp_path,
        options=FeatureOptions(num_projections=40, block_size=4),
    )
    features = jacobian_features(
        in_contrasts(case.apply, contrast_basis(3)),
        case.params,
        inputs,
        options=FeatureOptions(num_projections=40, block_size=4),
    )
    np.testing.assert_array_equal(np.concatenate(list(store)), features)
    again = []
    write_features(
        apply,
        case.params,
        inputs,
        tmp_path,
        options=FeatureOptions(num_projections=40, block_size=4),
        progress=lambda *_: again.append(1),
    )
    assert not again  # nothing was left to compute
    optimizer = OptimizerConfig(0.05, 0.9, batch_size=4)
    curves = [
        predict(
            linearize(case.model, inputs, labels, outputs="contrasts", **more),
            optimizer,
            8,
            num_seeds=1,
        ).loss
        for more in (
            {"options": FeatureOptions(num_projections=40), "space": "primal"},
            {"features": store, "space": "primal"},
            {"features": store, "options": FeatureOptions(memory=2000)},
        )
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)  # streamed
    with pytest.raises(
        ValueError,
        match=r"features: the store holds \(samples, outputs\) = \(11, 2\), but the task has \(11, "
        r"3\)",
    ):
        linearize(case.model, inputs, labels, features=store)
    store.folder.joinpath(
        next(path.name for path in sorted(store.folder.iterdir()) if path.suffix == ".safetensors")
    ).unlink()
    with pytest.raises(ValueError, match="1 blocks are missing or damaged"):
        linearize(case.model, inputs, labels, outputs="contrasts", features=store)


@pytest.mark.slow
def test_bfloat16_rounds_products_and_nothing_else():
    case, inputs = case_and_inputs()
    text = str(jax.make_jaxpr(in_bfloat16(case.apply))(case.params, inputs))
    assert "conv_general_dilated" in text
    assert "bf16" in text
    features, rounded = (
        jacobian_features(
            case.apply,
            case.params,
            inputs,
            options=FeatureOptions(num_projections=64, precision=precision),
        )
        for precision in ("float32", "bfloat16")
    )
    assert rounded.dtype == jnp.float32
    assert 1e-4 < relative_error(rounded, features) < 3e-2
    elementwise = mlp(2)
    np.testing.assert_array_equal(
        in_bfloat16(lambda params, x: jnp.tanh(x[:, :2] + params[0]["bias"][:2]))(
            elementwise.params, elementwise.inputs(3, 0)
        ),
        jnp.tanh(elementwise.inputs(3, 0)[:, :2] + elementwise.params[0]["bias"][:2]),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float8"}, "precision: unknown 'float8'"),
        ({"block_size": 0}, "block_size: must be at least 1"),
        ({"memory": 0}, "memory: must be at least one byte"),
    ],
)
def test_bad_arguments(unchecked, arguments, message):
    case, inputs = case_and_inputs(3)
    with pytest.raises(ValueError, match=message):
        plan_features(case.apply, case.params, inputs, options=FeatureOptions(**arguments))
