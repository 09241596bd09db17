"""Wrappers and containers around a network's names: the same weights, with a word where something
was left aside.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from ntk_tt.models import load_model
from ntk_tt.runtime.parameter_names import named_leaves
from tests.torch_files import Checkpoint

SHAPES = {
    "layers.0.weight": (8, 12),
    "layers.0.bias": (8,),
    "layers.1.weight": (8, 8),
    "layers.1.bias": (8,),
    "head.weight": (4, 8),
    "head.bias": (4,),
}


def load(path: Path, **options):
    return load_model("mlp", weights=str(path), image_size=2, **options)


@pytest.fixture(scope="module")
def arrays():
    """A perceptron as PyTorch calls and lays it, with a counter of batch norm's that nothing
    needs.
    """
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()
    } | {"layers.0.num_batches_tracked": np.asarray(7)}


@pytest.fixture(scope="module")
def model(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    safetensors.numpy.save_file(arrays, str(path))
    return load(path)


@pytest.fixture(scope="module")
def averaged(arrays):
    return {name: array + 1 if array.dtype.kind == "f" else array for name, array in arrays.items()}


def under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in arrays.items()}


def same(one, two) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True)
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.module.",
        "student.",
        "module.teacher.",
        "model_ema.module.",
        "0.",
        "learner.network.backbone.",
    ],
)
@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_a_prefix_comes_off_whatever_it_is(prefix, form, model, arrays, tmp_path):
    path = tmp_path / "weights"
    tree = under(prefix, arrays)
    if form == "zip":
        Checkpoint(tree).zip(path)
    else:
        safetensors.numpy.save_file(tree, str(path))
    loaded = load(path)
    assert same(loaded, model)
    assert loaded.note == (f"weights' names without '{prefix}'" if prefix else "")


@pytest.mark.parametrize(
    "containers",
    [
        ("state_dict",),
        ("model",),
        ("model_state_dict",),
        ("net",),
        ("weights",),
        ("params",),
        ("params_ema",),
        ("teacher",),
        ("module",),
        ("state", "model"),
        ("ema", "module"),
        ("network_fn",),
    ],
)
def test_a_container_is_looked_into(containers, model, arrays, tmp_path):
    tree = under("module.", arrays)
    for each in reversed(containers):
        tree = {
            each: tree,
            "epoch": 3,
            "optimizer": {
                "state": {0: {"exp_avg": np.ones(3, np.float32)}},
                "param_groups": [{"lr": 0.1}],
            },
        }
    loaded = load(Checkpoint(tree).zip(tmp_path / "a.ckpt"))
    assert same(loaded, model)
    assert loaded.note == "weights' names without 'module.'"


@pytest.mark.parametrize(
    ("tree", "note"),
    [
        (
            lambda a, b: {"state_dict": a, "state_dict_ema": b},
            "weights under 'state_dict', not under 'state_dict_ema'",
        ),
        (lambda a, b: {"model_ema": b, "model": a}, "weights under 'model', not under 'model_ema'"),
        (
            lambda a, b: {"params": under("module.", a), "params_ema": b},
            "weights under 'params/module', not under 'params_ema'",
        ),
        (lambda a, b: a | under("ema.", b), "weights under 'no prefix', not under 'ema'"),
        (
            lambda a, b: {"state_dict": under("model.", a) | under("ema_model.module.", b)},
            "weights under 'state_dict/model', not under 'state_dict/ema_model.module'",
        ),
        (
            lambda a, b: {"state_dict": under("model.", a) | under("model_ema.", b)},
            "weights under 'state_dict/model', not under 'state_dict/model_ema'",
        ),
        (
            lambda a, b: under("swa_model.module.", b) | under("model.", a),
            "weights under 'model', not under 'swa_model.module'",
        ),
        (
            lambda a, b: {
                "state_dict": under("model.", a) | {"criterion.weight": np.ones(4, np.float32)}
            },
            "weights' names without 'model.'; left out of the checkpoint: "
            "'state_dict/criterion.weight'",
        ),
        (
            lambda a, b: (
                under("net.", a)
                | {"train_acc.correct": np.asarray(3), "train_acc.total": np.asarray(4)}
            ),
            "weights' names without 'net.'; left out of the checkpoint: 'train_acc.correct' and 1 "
            "more",
        ),
        (
            lambda a, b: (
                a
                | {"criterion.weight": np.ones(4, np.float32), "val_accuracy.total": np.asarray(4)}
            ),
            "left out of the checkpoint: 'criterion.weight' and 1 more",
        ),
        (
            lambda a, b: under("module.", a) | {"n_averaged": np.asarray(5)},
            "weights' names without 'module.'",
        ),
    ],
)
def test_what_lies_beside_the_network_is_left_out(tree, note, model, arrays, averaged, tmp_path):
    loaded = load(Checkpoint(tree(arrays, averaged)).zip(tmp_path / "a.pth"))
    assert same(loaded, model)
    assert loaded.note == note


@pytest.mark.parametrize(
    "inner", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module._orig_mod"]
)
@pytest.mark.parametrize("layers", [1, 3])
def test_wrappers_of_modules_within_come_off(inner, layers, model, arrays, tmp_path):
    """Of one, or of all."""
    names = ["layers.1.", "layers.0.", "head."][:layers]
    for outer in ("", "module.", "_fsdp_wrapped_module."):
        tree = {}
        for name, array in arrays.items():
            start = next((each for each in names if name.startswith(each)), "")
            wrapped = name.replace(start, f"{start}{inner}.") if start else name
            tree[outer + wrapped] = array
        assert same(load(Checkpoint(tree).zip(tmp_path / "a.pth")), model)


@pytest.mark.parametrize("name", ["optimizer/exp_avg", "grads", "master_params", "optim.momentum"])
def test_numbers_of_the_optimiser_are_no_second_network(name, model, arrays, averaged, tmp_path):
    beside, _, container = name.rpartition("/")
    tree = {"model": arrays, (beside or name): {container: averaged} if beside else averaged}
    loaded = load(Checkpoint(tree).zip(tmp_path / "a.pth"))
    assert same(loaded, model)
    assert f"weights under 'model', not under '{name}" in loaded.note


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("student", "teacher"), "'student', 'teacher'"),
        (("encoder_q", "encoder_k"), "'encoder_q', 'encoder_k'"),
        (("ema_a", "ema_b"), "'ema_a', 'ema_b'"),
    ],
)
@pytest.mark.parametrize("containers", [True, False])
def test_two_copies_without_a_plain_one_are_named(
    names, said, containers, arrays, averaged, tmp_path
):
    tree = (
        dict(zip(names, (arrays, averaged), strict=True))
        if containers
        else under(f"{names[0]}.", arrays) | under(f"{names[1]}.", averaged)
    )
    with pytest.raises(
        ValueError,
        match=rf"weights: '.*a\.pth' holds the network 2 times, under {said}; save the one you "
        r"mean alone",
    ):
        load(Checkpoint(tree).zip(tmp_path / "a.pth"))


def test_a_new_head_goes_with_a_prefix(model, arrays, tmp_path):
    backbone = {name: array for name, array in arrays.items() if not name.startswith("head")}
    path = Checkpoint(
        under("backbone.", backbone) | {"fc.weight": np.ones((4, 8), np.float32)}
    ).zip(tmp_path / "a.pth")
    loaded = load(path, num_classes=3)
    np.testing.assert_array_equal(
        loaded.params["layers"][1]["kernel"], model.params["layers"][1]["kernel"]
    )
    assert (
        loaded.note == "weights' names without 'backbone.'; left out of the checkpoint: 'fc.weight'"
    )


def test_another_network_is_still_refused(tmp_path):
    """Names that the network lacks are no wrapper's, whatever a few of its layers are called."""
    other = {
        f"stages.{stage}.{name}.weight": np.ones(16, np.float32)
        for stage in range(3)
        for name in ("conv1", "bn1")
    }
    with pytest.raises(ValueError, match=r"has no '.*is it the checkpoint of another network"):
        load_model("resnet20", weights=str(Checkpoint(other).zip(tmp_path / "a.pth")))


def test_a_name_within_the_network_that_it_lacks_is_no_addition(arrays, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds 'head\.loss' \(4,\), which the network does not have"
    ):
        load(
            Checkpoint(under("module.", arrays | {"head.loss": np.ones(4, np.float32)})).zip(
                tmp_path / "b.pth"
            )
        )


def test_a_convolutional_network_with_statistics_comes_out_of_its_wrappers(tmp_path):
    model = load_model("resnet20", weights="random", num_classes=4)
    renamed = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
        "bias": "bias",
    }
    tree = {}
    for name, leaf in {
        **named_leaves(model.params),
        **named_leaves(model.batch_statistics.state),
    }.items():
        parent, _, last = name.rpartition(".")
        tree[f"model._orig_mod.{parent}.{renamed[last]}"] = (
            np.ascontiguousarray(np.moveaxis(np.asarray(leaf), (-2, -1), (1, 0)))
            if last == "kernel"
            else np.asarray(leaf)
        )
    loaded = load_model(
        "resnet20", weights=str(Checkpoint({"state_dict": tree}).zip(tmp_path / "a.ckpt"))
    )
    assert same(loaded, model)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(loaded.batch_statistics),
            jax.tree.leaves(model.batch_statistics),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    "name",
    [
        "weights.pth",
        "last.ckpt",
        "blob",
        "network.model",
        "network.pth.1",
        "pytorch_model.bin",
        "weights.safetensors",
        "weights.pth.tar",
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_the_content_tells_what_a_file_is(name, form, model, arrays, tmp_path):
    path = tmp_path / name
    safetensors.numpy.save_file(arrays, str(path)) if form == "safetensors" else getattr(
        Checkpoint({"state_dict": arrays, "epoch": 3}), form
    )(path)
    assert same(load(path), model)


@pytest.mark.parametrize(("one_storage", "order"), [(True, np.asarray), (False, np.asfortranarray)])
def test_flat_and_transposed_checkpoints_are_the_same_network(
    one_storage, order, model, arrays, tmp_path
):
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    assert same(
        load(Checkpoint(floats, one_storage=one_storage, order=order).zip(tmp_path / "a.pth")),
        model,
    )
