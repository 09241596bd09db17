"""Directions of each sample's own: orthonormal, what they leave out, and what stands for the
rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_tt.features.own_directions import HeadPath, OwnDirections, head_path, left_out
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


def of_all(rule: OwnDirections, outputs, targets, path, seed=0) -> np.ndarray:
    @jax.jit
    def found(outputs, targets, path):
        keys = jax.random.split(jax.random.key(seed), len(outputs))
        return jax.vmap(lambda *sample: rule(*sample, path))(outputs, targets, keys)

    return np.asarray(found(outputs, targets, path), np.float64)


@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_are_orthonormal_and_the_spare_one_is_at_right_angles(has_head, count):
    outputs, targets, path = task(has_head)
    rule = OwnDirections("ce", count, has_head, spares=1)
    found = of_all(rule, outputs, targets, path)
    assert found.shape == (SAMPLES, rule.number(outputs.shape[1]), outputs.shape[1])
    own, spare = found[:, :count], found[:, count]
    gram = own @ own.transpose(0, 2, 1)
    exists = np.linalg.norm(own, axis=2) > 0.5  # a sample that is pulled in fewer has no more
    assert exists[:, : min(count, 2)].all()
    # in single precision the least squared length that counts, a millionth of the first, is off by
    # a twentieth: 0.025 of the length, of which Newton's step leaves 1.5 squares
    np.testing.assert_allclose(gram, np.eye(count) * exists[:, None], atol=1e-3)
    lengths = np.linalg.norm(spare, axis=1)
    assert lengths.min() > 0.01
    assert np.abs(np.einsum("nkf,nf->nk", own, spare) / lengths[:, None]).max() < 1e-3
    # and without it the others are the same
    alone = of_all(OwnDirections("ce", count, has_head), outputs, targets, path)
    np.testing.assert_array_equal(alone, own)


def test_the_number_of_directions():
    for rule, number in (
        (OwnDirections("ce", 2, True), 2),
        (OwnDirections("ce", 2, True, spares=1), 3),
        (OwnDirections("mse", None, False), FEATURES),
    ):
        assert rule.number(FEATURES) == number
    outputs, targets, path = task(True)
    found = of_all(OwnDirections("ce", None, True), outputs, targets, path)
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(FEATURES), found.shape))


@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
def test_what_is_left_out_falls_to_nothing_and_is_what_the_directions_miss(has_head):
    outputs, targets, path = task(has_head)
    missing = left_out("ce", has_head, outputs, targets, path)
    assert (np.diff(missing) <= 0).all()
    assert missing[0] > 0.02
    assert missing[-1] < 1e-3
    if not has_head:  # residuals of softmax have no more dimensions
        assert missing[CLASSES - 2] < 1e-3

    @jax.jit
    def pulls_of(outputs, targets, path):
        return jax.vmap(
            lambda output, target: OwnDirections("ce", 1, has_head).pulls(output, target, path)
        )(outputs, targets)

    pulls = np.asarray(pulls_of(outputs, targets, path), np.float64)
    for count in (1, 2):
        found = of_all(OwnDirections("ce", count, has_head), outputs, targets, path)
        seen = np.einsum("nqf,nkf,nkg->nqg", pulls, found, found)
        share = np.linalg.norm(pulls - seen) / np.linalg.norm(pulls)
        np.testing.assert_allclose(missing[count - 1], share, rtol=1e-3, atol=1e-4)
        # no others of that number leave out less: the singular values say how much that is
        lost = np.linalg.svd(pulls, compute_uv=False)[:, count:]
        np.testing.assert_allclose(
            share, np.linalg.norm(lost) / np.linalg.norm(pulls), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("has_head", [True, False], ids=["head", "no head"])
def test_the_spare_direction_moves_the_logits_as_far_as_the_rest_does_on_average(
    has_head, loss: LossName
):
    """Mean over 4,000 keys of the square of what the logits move by, where the outputs move along
    any vector: within 4 of its own standard errors.
    """
    outputs, targets, path = task(has_head)
    weight = path.weight[3] if has_head else None
    if weight is not None:  # one head, whatever is drawn
        path = HeadPath(weight[None], path.bias[3:4])
    rule = OwnDirections(loss, 1, has_head, spares=1)
    output, target, moved = outputs[0], targets[0], np.asarray(normal(5, outputs.shape[1]))
    keys = jax.random.split(jax.random.key(1), 4000)
    found = np.asarray(
        jax.jit(jax.vmap(lambda key: rule(output, target, key, path)))(keys), np.float64
    )
    own, spares = found[0, 0], found[:, 1]
    centre = np.eye(CLASSES) - (loss == "ce") / CLASSES  # logits may all move alike
    rest = moved - own * (own @ moved)
    read = centre if weight is None else centre @ np.asarray(weight, np.float64).T
    expected = np.sum((read @ rest) ** 2)
    seen = np.sum((spares @ read.T) ** 2, 1) * (spares @ moved) ** 2
    error = np.std(seen) / np.sqrt(len(seen))
    assert error < 0.1 * expected
    assert abs(np.mean(seen) - expected) < 4 * error
