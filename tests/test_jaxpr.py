"""What the package takes from JAX beyond its documented interface: each fact, so that a new version
that changes one is found here.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.jacobian import jaxpr as jaxprs


def equations(function, *arguments) -> list:
    return jaxprs.trace(function, *arguments).jaxpr.eqns


def named(function, name: str, *arguments):
    return next(
        equation for equation in equations(function, *arguments) if equation.primitive.name == name
    )


X = jnp.arange(6.0).reshape(2, 3)


def _slice(rows):
    return {"start_indices": (0, 0), "limit_indices": (rows, 3), "strides": None}


@pytest.mark.parametrize(
    ("function", "moves", "keeps_matrix"),
    [
        (lambda x: x.reshape(3, 2), True, False),
        (lambda x: x.reshape(1, 2, 3), True, True),
        (lambda x: x.T, True, False),
        (lambda x: jax.lax.rev(x, (0, 1)), True, False),
        (lambda x: jnp.broadcast_to(x, (4, 2, 3)), False, False),
        (lambda x: x.astype(jnp.bfloat16), True, True),
        (lambda x: jax.lax.slice_p.bind(x, **_slice(2)), True, True),
    ],
)
def test_equations_that_rearrange(function, moves, keeps_matrix):
    (equation,) = equations(function, X)
    assert jaxprs.rearranges(equation)
    assert jaxprs.keeps_inner_products(equation) == moves
    assert jaxprs.keeps_matrix(equation) == keeps_matrix


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        lambda x: jnp.sin(x),
        lambda x: x @ x.T,
        lambda x: x.sum(),
        lambda x: jax.lax.slice_p.bind(x, **_slice(1)),
    ],
)
def test_equations_that_compute(function):
    assert not any(
        jaxprs.rearranges(equation)
        for equation in equations(function, X)
        if equation.primitive.name != "transpose"
    )


def test_calls_are_seen_through_and_control_flow_is_not():
    inner = jaxprs.inner_jaxpr(equations(jax.jit(lambda x: jnp.sin(x)), X)[0])
    assert inner is not None
    assert [equation.primitive.name for equation in inner.jaxpr.eqns] == ["sin"]
    scan = named(lambda x: jax.lax.scan(lambda c, r: (c + r.sum(), None), 0.0, x)[0], "scan", X)
    assert jaxprs.inner_jaxpr(scan) is None
    remat = equations(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))), X)[0]
    assert jaxprs.inner_jaxpr(remat) is None
    assert jaxprs.inner_jaxpr(equations(jax.nn.relu, X)[0]) is not None or equations(
        jax.nn.relu, X
    )[0].primitive.name.startswith("custom_jvp")


def test_convolutions_tell_their_parameters():
    x, kernel = jnp.ones((1, 8, 7, 4)), jnp.ones((3, 2, 2, 6))
    found = jaxprs.convolution(
        named(
            lambda x, k: jax.lax.conv_general_dilated(
                x,
                k,
                (2, 1),
                ((1, 0), (0, 1)),
                rhs_dilation=(1, 2),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
            ),
            "conv_general_dilated",
            x,
            kernel,
        )
    )
    assert found == jaxprs.Convolution(
        (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2), (2, 1), ((1, 0), (0, 1)), (1, 1), (1, 2), 2, 1
    )
    assert jaxprs.convolution(equations(jnp.sin, X)[0]) is None


def test_products_tell_their_axes():
    equation = named(
        lambda a, b: jnp.einsum("nij,jk->nik", a, b),
        "dot_general",
        jnp.ones((5, 2, 3)),
        jnp.ones((3, 4)),
    )
    assert jaxprs.matrix_product(equation) == (((2,), (0,)), ((), ()))
    assert jaxprs.is_product(equation)
    assert jaxprs.matrix_product(equations(jnp.sin, X)[0]) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sin(x),
        lambda x: x @ x.T,
        jax.nn.relu,
        jax.nn.gelu,
        jax.checkpoint(lambda x: jnp.sin(x) * 2),
        lambda x: jax.nn.softmax(x) + x.argmax(),
        lambda x: jax.lax.scan(lambda c, r: (c * r, c), jnp.ones(3), x)[1],
        lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
        lambda x: jnp.sort(x)[0] + 2.0,
    ],
)
def test_every_equation_can_be_bound_again(function):
    """Evaluating a jaxpr equation by equation gives what the function gives, and so does its
    derivative.
    """
    closed = jaxprs.trace(function, X)

    def again(x):
        return jaxprs.evaluate(
            closed.jaxpr, closed.consts, [x], lambda equation, values: jaxprs.bind(equation, values)
        )[0]

    @jax.jit
    def both(x):
        return [(each(x), jax.jacobian(each)(x)) for each in (again, function)]

    for found, expected in zip(*both(X + 1), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_product_in_another_dtype():
    equation = named(lambda a, b: a @ b, "dot_general", X, X.T)
    (product,) = jaxprs.bind(
        equation,
        [X.astype(jnp.bfloat16), X.T.astype(jnp.bfloat16)],
        result_dtype=jnp.dtype(jnp.bfloat16),
    )
    assert product.dtype == jnp.bfloat16
    np.testing.assert_allclose(product.astype(jnp.float32), X @ X.T, rtol=1e-2)


def test_constants_are_found_wherever_they_are_closed_over():
    """In the function itself, a call, a loop and a branch; as NumPy's arrays and as JAX's."""
    first, second, third = np.arange(3.0, dtype=np.float32), jnp.arange(4.0), jnp.full((2, 3), 7.0)

    def function(x):
        y = jax.jit(lambda x: x * first)(x) + third[0]
        y, _ = jax.lax.scan(lambda carry, _: (carry * second[1:], None), y, None, length=2)
        return jax.lax.cond(y.sum() > 0, lambda y: y + second[:3], lambda y: -y, y)

    found = {
        np.asarray(value).tobytes()
        for value in jaxprs.constants(jaxprs.trace(function, jnp.ones(3)))
    }
    assert {np.asarray(value).tobytes() for value in (first, second, third)} <= found
    assert not list(jaxprs.constants(jaxprs.trace(jnp.sin, jnp.ones(3))))


def test_a_jaxpr_tells_the_shapes_of_its_results_and_reads_the_same_each_time():
    closed, again = (
        jaxprs.trace(lambda x, y: (jax.nn.relu(x) @ y, x.sum()), X, X.T) for _ in range(2)
    )
    assert jaxprs.result_shapes(closed) == [(2, 2), ()]
    assert jaxprs.text(closed) == jaxprs.text(again)
    assert "dot_general" in jaxprs.text(closed)
    assert "0x" not in jaxprs.text(closed)


def test_what_is_traced_is_told_from_what_is_known():
    assert not jaxprs.is_traced(X)
    assert not jaxprs.is_traced(jax.random.key(0))
    assert jax.jit(lambda x: jnp.asarray(jaxprs.is_traced(x)))(X)


@pytest.mark.parametrize(
    ("version", "is_newer"),
    [
        ("0.8.0", False),
        ("0.12.0.1", False),
        ("0.12.9", False),
        ("0.13.0.dev2026", True),
        ("1.0", True),
    ],
)
def test_a_jax_newer_than_any_tested_is_told(version, is_newer):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jaxprs.warn_if_untested(version)
    assert [
        str(warning.message).startswith(f"ntk_tt: JAX {version} is newer than 0.12")
        for warning in told
    ] == ([True] if is_newer else [])
