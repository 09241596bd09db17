"""What the list of networks says, against the networks."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from ntk_tt.models import MODELS, list_models, load_model
from ntk_tt.models.heads import part


def shapes(name: str, num_classes: int | None):
    """Parameter shapes of a network at its usual image size; nothing is initialised."""
    architecture = MODELS[name]
    options = architecture.read({}, architecture.image_size).options
    module = nnx.eval_shape(lambda: architecture.build(num_classes, rngs=nnx.Rngs(0), **options))
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


SLOW = (
    "resnet44",
    "resnet56",
    "resnet34",
    "resnet50",
    "densenet121",
)
# the same blocks in other numbers
NIGHTLY = ("resnet101", "resnet101v1", "densenet169")


@pytest.mark.slow_but("resnet18", "resnet20", "vit_s_16")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow] * (name in SLOW) + [pytest.mark.nightly] * (name in NIGHTLY),
        )
        for name in MODELS
    ],
)
def test_sizes_are_those_of_the_network(name):
    (row,) = [row for row in list_models() if row.name == name]
    with_head = shapes(name, 7)
    head = part(with_head, MODELS[name].head)
    assert head["kernel"].shape == (row.num_features, 7)
    assert count(with_head) == row.num_params + 7 * (row.num_features + 1)


# torchvision.models.<name>(): published parameter counts with 1000 classes
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "alexnet": 61_100_840,
    "squeezenet1_0": 1_248_424,
    "vit_b_16": 86_567_656,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_that_torchvision_publishes(name):
    (row,) = [row for row in list_models() if row.name == name]
    assert row.num_params + 1000 * (row.num_features + 1) == PUBLISHED[name]


def test_the_list_says_what_ships_and_is_complete():
    rows = list_models()
    assert [row.name for row in rows] == list(MODELS)
    assert [row.name for row in rows if row.weights.startswith("bundled")] == ["resnet8"]
    assert all(row.num_params > 0 and row.weights and row.licence for row in rows)
    assert all(row.minimum_size <= row.image_size for row in rows)


def test_random_weights_where_none_ship_and_bundled_ones_are_refused():
    model = load_model("mlp", num_classes=2, image_size=4)
    assert model.note == "random weights: none of mlp ship with the package"
    assert load_model("mlp", weights="random", num_classes=2, image_size=4).note == ""  # asked for
    assert model.num_params == (48 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 2
    other = dataclasses.replace(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert float(other.preprocess(np.full((1, 4, 4, 3), 255, np.uint8)).max()) == pytest.approx(2)
    with pytest.raises(
        ValueError,
        match="weights: no weights of 'mlp' ship with the package; give a file, 'hf:owner/name' or "
        "'random'",
    ):
        load_model("mlp", weights="bundled", num_classes=2)
