"""Every family against torchvision, on weights given by formula (`tests/parity.py`) and stored
outputs (`tools/parity.py`).
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from ntk_tt.models import MODELS, load_model
from ntk_tt.models.catalogue import densenet, resnet, vision_transformer
from ntk_tt.models.zoo.alexnet import AlexNet
from ntk_tt.models.zoo.resnet import Bottleneck
from ntk_tt.models.zoo.vision_transformer import resize_positions
from tests import parity

REFERENCES = json.loads((Path(__file__).parent / "fixtures" / "parity.json").read_text())

# The case's name in our catalogue; where it is a smaller network, what stands there meanwhile.
CASES = {
    "resnet18": ("resnet18", None),
    "resnet_bottleneck": ("resnet50", resnet(Bottleneck, (1, 1, 1, 1))),
    "resnet_bottleneck_v1": ("resnet50v1", resnet(Bottleneck, (1, 1, 1, 1), stride_first=True)),
    "resnet20": ("resnet20", None),
    "densenet": ("densenet121", densenet((2, 1, 2, 1), growth=4, stem=6)),
    "alexnet": (
        "alexnet",
        dataclasses.replace(
            MODELS["alexnet"],
            build=lambda num_classes, hidden=16, **options: AlexNet(
                num_classes, hidden=hidden, **options
            ),
        ),
    ),
    "squeezenet1_0": ("squeezenet1_0", None),
    "vision_transformer": ("vit_s_16", vision_transformer(24, 2, 16, head_width=8)),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a case's network through the one door, its checkpoint changed by a function."""

    def run(case: str, change=lambda arrays: None, **arguments):
        name, smaller = CASES[case]
        if smaller is not None:
            monkeypatch.setitem(MODELS, name, smaller)
        arrays = parity.parameters(REFERENCES[case]["shapes"])
        change(arrays)
        safetensors.numpy.save_file(
            {key: np.ascontiguousarray(array) for key, array in arrays.items()},
            str(tmp_path / "case.safetensors"),
        )
        return load_model(
            name,
            weights=str(tmp_path / "case.safetensors"),
            **{"image_size": REFERENCES[case]["image_size"], **arguments},
        )

    return run


def outputs(model, side: int):
    images = model.preprocess(parity.images(side))
    return jax.jit(lambda params: (model.apply(params, images), model.features(params, images)))(
        model.params
    )


def assert_close(result, stored):
    stored = np.asarray(stored)
    np.testing.assert_allclose(
        result[:, : stored.shape[1]], stored, atol=1e-5 * np.abs(stored).max(), rtol=1e-4
    )


@pytest.mark.slow_but("alexnet", "vision_transformer")
@pytest.mark.parametrize("case", CASES)
def test_logits_and_features_are_those_of_torchvision(case, load):
    reference = REFERENCES[case]
    model = load(case)
    assert (model.num_classes, model.note) == (3, "")
    logits, features = outputs(model, reference["image_size"])
    assert_close(logits, reference["logits"])
    assert_close(features, reference["features"])


def test_the_two_bottlenecks_differ_by_where_the_stride_lies():
    first, second = (
        np.asarray(REFERENCES[case]["logits"])
        for case in ("resnet_bottleneck", "resnet_bottleneck_v1")
    )
    assert np.abs(first - second).max() > 1  # else the test above could not tell them apart


# case, names that the cut checkpoint lacks, what the model says
CUTS = {
    "resnet18": (r"layer[34]|fc", "layer2"),
    "resnet_bottleneck": (r"layer4|fc", "layer3"),
    "densenet": (r"features\.(denseblock[34]|transition3|norm5)|classifier", "transition2"),
    "squeezenet1_0": (r"features\.([789]|1\d)\.|classifier", "features.5"),
    "alexnet": (r"classifier", "the convolutions"),
}


@pytest.mark.slow_but("alexnet", "squeezenet1_0", "densenet")
@pytest.mark.parametrize("case", CUTS)
def test_a_cut_checkpoint_gives_the_features_where_it_ends(case, load):
    pattern, end = CUTS[case]
    model = load(
        case, lambda arrays: [arrays.pop(name) for name in list(arrays) if re.match(pattern, name)]
    )
    assert model.note == f"cut after {end}, where the checkpoint ends"
    assert (model.num_classes, model.head) == (0, "")
    images = model.preprocess(parity.images(REFERENCES[case]["image_size"]))
    assert_close(
        jax.jit(lambda params: model.features(params, images))(model.params),
        REFERENCES[case]["cut_features"],
    )
    with pytest.raises(ValueError, match="apply: this network has no head, only `features`"):
        jax.eval_shape(model.apply, model.params, images)


def renamed(pairs):
    def change(arrays):
        for name in list(arrays):
            new = name
            for pattern, replacement in pairs:
                new = re.sub(pattern, replacement, new)
            arrays[new] = arrays.pop(name)

    return change


TIMM = [
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj", "patch_embed.proj"),
    (r"^encoder\.ln", "norm"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_", ".norm"),
    (r"self_attention\.in_proj_(weight|bias)", r"attn.qkv.\1"),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
    (r"^heads\.head", "head"),
]


@pytest.mark.slow_but("timm", "torchvision's transformer*")
@pytest.mark.parametrize(
    ("case", "pairs"),
    [
        ("vision_transformer", TIMM),
        ("vision_transformer", [(r"mlp\.0", "mlp.linear_1"), (r"mlp\.3", "mlp.linear_2")]),
        ("densenet", [(r"(norm|conv)([12])\.", r"\1.\2.")]),
        ("resnet20", [("^", "module.")]),
    ],
    ids=["timm", "torchvision's transformer files", "torchvision's DenseNet files", "DataParallel"],
)
def test_other_names_in_use_are_understood(case, pairs, load):
    names = set(REFERENCES[case]["shapes"])
    probe = dict.fromkeys(names, np.zeros(1))
    renamed(pairs)(probe)
    assert not names >= set(probe)
    first, second = load(case), load(case, renamed(pairs))
    for left, right in zip(
        jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_num_batches_tracked_is_ignored(load):
    assert (
        load(
            "resnet20", lambda arrays: arrays.update({"bn1.num_batches_tracked": np.asarray(4)})
        ).num_classes
        == 3
    )


@pytest.mark.slow
def test_a_new_head_for_squeezenet_is_linear_in_the_features(load):
    model = load("squeezenet1_0", num_classes=5)
    logits, features = outputs(model, 47)
    head = model.params["classifier"]["1"]
    assert head["kernel"].shape == (512, 5)
    np.testing.assert_allclose(
        logits, features @ head["kernel"] + head["bias"], rtol=1e-3, atol=1e-4
    )
    assert (np.asarray(logits) < 0).any()  # the published head cannot give that
    assert (np.asarray(REFERENCES["squeezenet1_0"]["logits"]) >= 0).all()


def test_a_transformer_cut_after_a_block_says_so(load):
    model = load(
        "vision_transformer",
        lambda arrays: [arrays.pop(name) for name in list(arrays) if "encoder_layer_1" in name],
    )
    assert model.note == "cut after encoder_layer_0, where the checkpoint ends"
    assert outputs(model, 32)[0].shape == (2, 3)


def test_position_embeddings_are_resized_to_the_images(load):
    model = load("vision_transformer", image_size=48)
    assert model.note == "position embedding resized from 4 to 9 patches"
    embedding, stored = (
        model.params["encoder"]["pos_embedding"],
        parity.parameter("encoder.pos_embedding", (1, 5, 24)),
    )
    np.testing.assert_array_equal(embedding[:, 0], stored[:, 0])
    assert outputs(model, 48)[0].shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"images: this transformer was built for 48 pixels a side, got \(32, 32\)"
    ):
        outputs(model, 32)
    with pytest.raises(
        ValueError,
        match="image_size: must be a multiple of the patches' 16 pixels, got 40; give 32",
    ):
        load("vision_transformer", image_size=40)


def test_resizing_positions_keeps_what_is_constant_or_straight():
    side, grid = 6, 9
    row = np.arange(side, dtype=np.float32)
    square = np.stack(
        [
            np.ones((side, side)),
            np.broadcast_to(row, (side, side)),
            np.broadcast_to(row[:, None], (side, side)),
        ],
        -1,
    )
    embedding = np.concatenate(
        [np.full((1, 1, 3), 7.0), square.reshape(1, side * side, 3)], axis=1
    ).astype(np.float32)
    resized = resize_positions(embedding, grid)
    np.testing.assert_array_equal(resized[0, 0], 7.0)
    # at the border the outermost position is repeated
    inner = resized[0, 1:].reshape(grid, grid, 3)[3:-3, 3:-3]
    line = (np.arange(grid) + 0.5) * side / grid - 0.5
    np.testing.assert_allclose(inner[..., 0], 1, rtol=1e-5)
    np.testing.assert_allclose(inner[..., 1], np.broadcast_to(line[3:-3], (3, 3)), atol=1e-4)
    np.testing.assert_allclose(inner[..., 2], np.broadcast_to(line[3:-3, None], (3, 3)), atol=1e-4)
    with pytest.raises(
        ValueError,
        match="weights: a position embedding of 8 tokens is not a class token and a square of "
        "patches",
    ):
        resize_positions(embedding[:, :8], grid)


@pytest.mark.parametrize(
    "name", [name for name, architecture in MODELS.items() if architecture.minimum_size > 1]
)
def test_images_below_the_smallest_size_are_refused(name):
    smallest = MODELS[name].minimum_size
    with pytest.raises(
        ValueError,
        match=f"image_size: {name} needs images of at least {smallest} pixels, got {smallest - 1}",
    ):
        load_model(name, weights="random", num_classes=2, image_size=smallest - 1)


@pytest.mark.slow_but("alexnet", "densenet121")
@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "densenet121"])
def test_the_smallest_size_is_enough_and_one_less_is_not(name, load):
    case = {"densenet121": "densenet"}.get(name, name)
    model, smallest = load(case), MODELS[name].minimum_size

    def shape(side):
        return jax.eval_shape(
            model.apply, model.params, jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        ).shape

    assert shape(smallest) == (1, 3)
    with pytest.raises((ValueError, ZeroDivisionError, TypeError)):
        shape(smallest - 1)
