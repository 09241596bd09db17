"""Text encoders from hub folders, against transformers and a float64 reference."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ntk_tt.features.compute import jacobian_features
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.jacobian.network import jacobian_block
from ntk_tt.jacobian.structured import structured_jacobian
from ntk_tt.models import load_model
from ntk_tt.models.hub_folder import is_hub_folder, load_hub_folder, sizes_of
from ntk_tt.models.model import Model
from ntk_tt.models.trainable import restrict
from ntk_tt.prediction.setup import Setup
from ntk_tt.runtime.input_trees import Tokens
from ntk_tt.runtime.parameter_names import named_leaves
from tests import parity

REFERENCES = json.loads((Path(__file__).parent / "fixtures" / "text_parity.json").read_text())
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "much", "is", "it", "?"]


@pytest.fixture
def without_tokenizers(monkeypatch):
    """Encoders can be looked at where the tokenizers package is not installed."""
    monkeypatch.setattr("ntk_tt.models.hub_folder.read_tokenizer", lambda *_, **__: None)


def write_folder(folder: Path, case: str, change=lambda config, arrays: None) -> Path:
    config = dict(REFERENCES[case]["config"])
    arrays = parity.parameters(REFERENCES[case]["shapes"])
    change(config, arrays)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, str(folder / "model.safetensors"))
    return folder


def inputs_of(case: str) -> Tokens:
    return Tokens(
        {name: np.asarray(REFERENCES[case][name]) for name in ("input_ids", "attention_mask")}
    )


def features_of(model: Model, inputs) -> np.ndarray:
    return np.asarray(jax.jit(model.features)(model.params, inputs))


@pytest.mark.slow_but("first-bert", "mean-distilbert")
@pytest.mark.parametrize("case", REFERENCES)
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_equals_transformers(case, pooling, tmp_path, without_tokenizers):
    model = load_hub_folder(str(write_folder(tmp_path, case)), num_classes=3, pooling=pooling)
    found, stored = features_of(model, inputs_of(case)), np.asarray(REFERENCES[case][pooling])
    np.testing.assert_allclose(found, stored, atol=2e-5 * np.abs(stored).max(), rtol=1e-4)
    logits = model.apply(model.params, inputs_of(case))
    head = model.params["head"]
    np.testing.assert_allclose(logits, found @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_half_precision_old_names_and_what_is_left_out(tmp_path, without_tokenizers):
    def change(config, arrays):
        for name in list(arrays):
            array = arrays.pop(name).astype(np.float16)
            arrays[name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")] = (
                array
            )
        arrays["bert.embeddings.position_ids"] = np.arange(14)[None]

    case = "bert for masked words"
    model = load_hub_folder(str(write_folder(tmp_path, case, change)), num_classes=3)
    assert "'cls.predictions" in model.note
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
    stored = np.asarray(REFERENCES[case]["mean"])
    np.testing.assert_allclose(features_of(model, inputs_of(case)), stored, rtol=0.05, atol=0.02)


def test_the_folder_says_how_texts_are_pooled(tmp_path, without_tokenizers):
    folder = write_folder(tmp_path, "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    found = features_of(load_hub_folder(f"hf-folder:{folder}"), inputs_of("bert"))
    np.testing.assert_allclose(found, REFERENCES["bert"]["first"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, a: c.update(model_type="gpt2"), r"type 'gpt2'; known are bert"),
        (lambda c, a: c.update(hidden_size="12"), "has 'hidden_size' '12', which must be a number"),
        (lambda c, a: c.pop("vocab_size"), "has 'vocab_size' 'None', which must be"),
        (lambda c, a: c.update(num_attention_heads=5), "width 12 and 5 heads, which no encoder"),
        (lambda c, a: c.update(hidden_act="mish"), "the activation 'mish'; known are gelu"),
        (lambda c, a: c.update(position_embedding_type="relative_key"), "only absolute ones"),
        (lambda c, a: c.update(num_hidden_layers=3), r"has no 'encoder.layer.2"),
        (lambda c, a: c.update(num_hidden_layers=1), r"holds 'encoder.layer.1"),
        (lambda c, a: c.update(vocab_size=31), r"word_embeddings.embedding' has shape \(30, 12\)"),
        (
            lambda c, a: a.update({"embeddings.LayerNorm.bias": np.full(12, np.nan, np.float32)}),
            "holds NaN",
        ),
    ],
)
def test_a_folder_that_does_not_fit_says_why(change, message, tmp_path, without_tokenizers):
    with pytest.raises(ValueError, match=message):
        load_hub_folder(str(write_folder(tmp_path, "bert", change)), num_classes=3)


def test_a_folder_that_lacks_a_file_says_which(tmp_path, without_tokenizers):
    with pytest.raises(ValueError, match=r"there is no folder .*; give hf-folder:PATH"):
        load_hub_folder("hf-folder:/nowhere")
    with pytest.raises(ValueError, match=r"config.json' cannot be read \(No such file"):
        load_hub_folder(f"hf-folder:{tmp_path}")
    write_folder(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has none of model.safetensors"):
        load_hub_folder(str(tmp_path))
    for text in ("[1]", "{", '{"model_type": ' + "[" * 9999):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json' cannot be read"):
            load_hub_folder(str(tmp_path))
    assert is_hub_folder(str(tmp_path))
    assert is_hub_folder("hf:owner/name")
    assert not is_hub_folder("resnet8")


def test_one_door_and_its_flags(tmp_path, without_tokenizers):
    folder = str(write_folder(tmp_path, "bert"))
    assert load_model(folder, num_classes=4).num_classes == 4
    with pytest.raises(ValueError, match="leave weights and image_size out"):
        load_model(folder, num_classes=4, weights="random")
    for options, message in (
        ({"model": folder, "weights": "random"}, "weights: a text encoder has its own weights"),
        ({"model": folder, "image_size": 8}, "image-size: a text encoder has its own weights"),
        ({"max_length": 8}, "max-length: belongs to a text encoder"),
        ({"pooling": "first"}, "pooling: belongs to a text encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            Setup(**options).check()


def test_roberta_counts_positions_from_two():
    assert sizes_of(REFERENCES["roberta"]["config"], "x").longest == 12
    assert sizes_of(REFERENCES["bert"]["config"], "x").longest == 14


def test_texts_that_are_too_long_are_refused(tmp_path, without_tokenizers):
    model = load_hub_folder(str(write_folder(tmp_path, "bert")), num_classes=3)
    numbers = np.ones((1, 15), np.int32)
    with pytest.raises(ValueError, match="takes at most 14 tokens, got 15; cut the texts"):
        model.apply(model.params, {"input_ids": numbers, "attention_mask": numbers})


PARTS = {
    "all": 39,
    "head": 2,
    "bias": 18,
    "norm": 10,
    "last:1": 18,
    "lora:2+head": 2 + 2 * 12,
    "glob:*word_embeddings*": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", PARTS)
def test_the_jacobian_equals_that_of_jax(trainable, tmp_path, without_tokenizers):
    """Attention, layer norm, GELU, embeddings and pooling, and adapters of them."""
    model = load_hub_folder(str(write_folder(tmp_path, "bert")), num_classes=3)
    model = restrict(model, trainable, key=jax.random.key(1))
    assert len(named_leaves(model.params)) == PARTS[trainable]
    inputs = {name: jnp.asarray(each) for name, each in inputs_of("bert").items()}
    params = jax.tree.map(lambda leaf: leaf + 0.01, model.params)  # B of adapters is 0
    found, plain = (
        jax.jit(lambda params, x, way=way: way(model.apply, params, x))(params, inputs)
        for way in (structured_jacobian, jacobian_block)
    )
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5 * size), found, plain
    )


@pytest.mark.slow
def test_folded_features_equal_the_plain_path(tmp_path, without_tokenizers):
    model = load_hub_folder(str(write_folder(tmp_path, "distilbert")), num_classes=3)
    structured, plain = (
        np.asarray(
            jacobian_features(
                model.apply,
                model.params,
                inputs_of("distilbert"),
                options=FeatureOptions(num_projections=64, path=path),
            )
        )
        for path in ("structured", "plain")
    )
    assert np.linalg.norm(structured - plain) <= 1e-4 * np.linalg.norm(plain)


@pytest.fixture
def tokenizer_file(tmp_path):
    tokenizers = pytest.importorskip(
        "tokenizers", reason="the tokenizers package is not installed (pip install 'ntk-tt[text]')"
    )
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.enable_padding(length=50)  # which is not wanted
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_become_tokens(tokenizer_file):
    model = load_hub_folder(str(write_folder(tokenizer_file.parent, "bert")), num_classes=2)
    found = model.preprocess(np.asarray(["how much is it ?", "how odd"], object))
    assert isinstance(found, Tokens)
    assert found["input_ids"].tolist() == [[2, 4, 5, 6, 7, 8, 3], [2, 4, 1, 3, 0, 0, 0]]
    assert found.lengths.tolist() == [7, 4]
    assert model.preprocess(["it " * 99])["input_ids"].shape == (1, 14)  # all that it takes
    short = load_hub_folder(str(tokenizer_file.parent), num_classes=2, max_length=5)
    assert short.preprocess(["it " * 99])["input_ids"].tolist() == [[2, 7, 7, 7, 3]]
    with pytest.raises(ValueError, match="max-length: must lie in 3 … 14"):
        load_hub_folder(str(tokenizer_file.parent), max_length=15)
    with pytest.raises(ValueError, match="takes texts, got images"):
        model.preprocess(np.zeros((1, 8, 8, 3), np.uint8))
    tokenizer_file.write_text("{}")
    with pytest.raises(ValueError, match="is not a readable tokenizer"):
        load_hub_folder(str(tokenizer_file.parent))


@pytest.mark.weights
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_minilm_equals_its_reference(pooling, weights_root):
    pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    folder = weights_root / "all_minilm_l6_v2"
    model = load_hub_folder(f"hf-folder:{folder}", num_classes=5, pooling=pooling)
    reference = np.load(folder / "reference.npz")
    inputs = model.preprocess([str(text) for text in reference["sentences"]])
    np.testing.assert_array_equal(inputs["input_ids"], reference["input_ids"])
    stored = reference["mean_pooled" if pooling == "mean" else "last_hidden_first_token"]
    np.testing.assert_allclose(features_of(model, inputs), stored, atol=1e-3)
