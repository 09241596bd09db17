"""Directions of samples: orthonormal, what they leave out, and what stands for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_tt.features.directions import (
    HeadPath,
    directions_of,
    head_path,
    shared_directions,
    usual_directions,
)
from ntk_tt.losses import LossName
from tests.networks import normal

SAMPLES, FEATURES, CLASSES = 20, 9, 5


def task(has_head: bool) -> tuple[jax.Array, jax.Array, HeadPath]:
    targets = jnp.asarray(np.eye(CLASSES, dtype=np.float32)[np.arange(SAMPLES) % CLASSES])
    if not has_head:
        zero = jnp.zeros(0)
        return normal(0, SAMPLES, CLASSES), targets, HeadPath(zero, zero)
    outputs = normal(0, SAMPLES, FEATURES)
    path = head_path(outputs, 0.5 * normal(1, FEATURES, CLASSES), normal(2, CLASSES), targets, "ce")
    return outputs, targets, path


@pytest.mark.slow_but("1-no head", "3-head")
@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_orthonormal_and_the_spare_one_is_at_right_angles(has_head, count):
    outputs, targets, path = task(has_head)
    shared = shared_directions("ce", outputs, targets, path, count).rows
    found = np.asarray(directions_of("ce", shared, path, SAMPLES, jax.random.key(0)))
    assert found.shape == (SAMPLES, count + 1, outputs.shape[1])
    np.testing.assert_array_equal(found[:, :count], np.broadcast_to(shared, found[:, :count].shape))
    np.testing.assert_allclose(shared @ shared.T, np.eye(count), atol=1e-5)
    spare = found[:, count]
    lengths = np.linalg.norm(spare, axis=1)
    assert lengths.min() > 0.01
    assert np.abs(spare @ np.asarray(shared).T / lengths[:, None]).max() < 1e-3
    # each sample has its own, and the first ones are the same however many there are
    assert np.linalg.matrix_rank(spare) == min(SAMPLES, found.shape[2] - count - (not has_head))
    fewer = directions_of("ce", shared, path, 3, jax.random.key(0))
    np.testing.assert_allclose(fewer, found[:3], rtol=1e-5, atol=1e-6)


def test_one_that_spans_all_leaves_nothing_for_a_spare_one():
    outputs, targets, path = task(False)
    shared = shared_directions("ce", outputs, targets, path, CLASSES - 1)
    found = directions_of("ce", shared.rows, path, SAMPLES, jax.random.key(0))
    np.testing.assert_array_equal(found[:, -1], 0)
    assert shared.left_out < 1e-3


@pytest.mark.slow_but("no head")
@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
def test_what_is_left_out_falls_to_nothing_and_is_what_the_directions_miss(has_head):
    outputs, targets, path = task(has_head)
    width = outputs.shape[1]
    missing = []
    for count in (1, 2, CLASSES - 1, width):
        rows, left_out = vars(shared_directions("ce", outputs, targets, path, count)).values()
        missing.append(left_out)
        pulls = np.concatenate(
            [
                np.asarray(jax.grad(loss_of(weight, bias, targets))(outputs))
                for weight, bias in (
                    zip(path.weight, path.bias, strict=True) if has_head else [(np.eye(width), 0)]
                )
            ]
        )
        share = np.linalg.norm(pulls - pulls @ rows.T @ rows) / np.linalg.norm(pulls)
        if has_head:
            np.testing.assert_allclose(left_out, share, rtol=1e-3, atol=2e-3)
    assert (np.diff(missing) <= 1e-6).all()
    assert missing[0] > 0.02
    assert missing[-1] < 2e-3


def test_a_slowed_path_begins_at_the_same_head_and_goes_a_share_of_its_way():
    _, _, path = task(True)
    slowed = path.slowed(0.25)
    for whole, part in zip(path, slowed, strict=True):
        whole, part = np.asarray(whole), np.asarray(part)
        np.testing.assert_allclose(part[0], whole[0])
        np.testing.assert_allclose(part - part[:1], 0.25 * (whole - whole[:1]), atol=1e-6)
    assert np.abs(np.asarray(path.weight[-1] - path.weight[0])).max() > 0.1


def loss_of(weight, bias, targets):
    return lambda outputs: optax.softmax_cross_entropy(outputs @ weight + bias, targets).sum()


@pytest.mark.slow_but("2-head-ce", "1-no head-mse")
@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("spares", [1, 2])
def test_the_spare_directions_move_the_logits_as_far_as_the_rest_does_on_average(
    has_head, loss: LossName, spares
):
    """Mean over 4,000 samples of the square of what the logits move by, where the outputs move
    along any vector: within 4 of its own standard errors. Several spare ones move them by their
    sum, whose square has the cross terms of independent ones as well: none on average.
    """
    outputs, targets, path = task(has_head)
    weight = path.weight[3] if has_head else None
    if weight is not None:  # one head, whatever is drawn
        path = HeadPath(weight[None], path.bias[3:4])
    shared = shared_directions(loss, outputs, targets, path, 1).rows
    found = np.asarray(
        directions_of(loss, shared, path, 4000, jax.random.key(1), spares=spares), np.float64
    )
    moved = np.asarray(normal(5, outputs.shape[1]), np.float64)
    own, rest = found[0, 0], found[:, 1:]
    centre = np.eye(CLASSES) - (loss == "ce") / CLASSES  # logits may all move alike
    read = centre if weight is None else centre @ np.asarray(weight, np.float64).T
    expected = np.sum((read @ (moved - own * (own @ moved))) ** 2)
    seen = np.square(np.linalg.norm(rest @ read.T, axis=2) * (rest @ moved)).sum(1)
    error = np.std(seen) / np.sqrt(len(seen))
    assert error < 0.1 * expected
    assert abs(np.mean(seen) - expected) < 4 * error


def test_optimisers_that_divide_by_gradients_take_half_as_many_as_there_are_classes():
    found = {
        classes: sum(usual_directions(classes, "ce", preconditioned=True))
        for classes in (2, 5, 6, 10, 20, 100)
    }
    assert found == {2: 3, 5: 4, 6: 4, 10: 6, 20: 11, 100: 11}
    assert sum(usual_directions(100, "ce", preconditioned=False)) == 4


def test_the_squared_error_takes_two_more():
    found = {
        outputs: usual_directions(outputs, "mse", preconditioned=False) for outputs in (1, 2, 3, 10)
    }
    assert found == {1: (2, 1), 2: (3, 1), 3: (5, 1), 10: (5, 1)}
    assert usual_directions(20, "mse", preconditioned=True) == (10, 1)
