"""Text encoder of BERT's shape (Devlin et al. 2019), with the hub's names: BERT, MiniLM, RoBERTa
and DistilBERT are sizes and namings of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ntk_tt.models.zoo.blocks import apply_head, linear_head

Pooling = Literal["mean", "first"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class EncoderSizes(NamedTuple):
    """What of an encoder its configuration decides.

    Attributes:
        vocabulary: tokens that are known.
        width: of a token, d.
        depth: layers.
        num_heads: of attention, which divide the width.
        hidden: width of the layers' own networks.
        positions: most tokens of a text, and `first_position` more.
        types: kinds of text that a token may belong to; 0 for an encoder without.
        epsilon: of layer norm.
        activation: one of `ACTIVATIONS`.
        first_position: of the first token: RoBERTa counts from 2.
    """

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    hidden: int
    positions: int
    types: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    first_position: int = 0

    @property
    def longest(self) -> int:
        """Most tokens of a text."""
        return self.positions - self.first_position


class Embedding(nnx.Module):
    """Rows of a table, by number."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))

    def __call__(self, numbers: Int[Array | np.ndarray, "n t"]) -> Float[Array, "n t d"]:
        return jnp.take(self.embedding[...], numbers, axis=0, mode="clip")


class TextLayer(nnx.Module):
    """Attention and a two-layer network, each added to what came in and then normalised."""

    def __init__(self, sizes: EncoderSizes, *, rngs: nnx.Rngs):
        self.num_heads, self.activation = sizes.num_heads, sizes.activation
        width = sizes.width

        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(width, epsilon=sizes.epsilon, rngs=rngs)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, rngs=rngs)

        self.attention = nnx.Dict(
            {
                "self": nnx.Dict(
                    {name: linear(width, width) for name in ("query", "key", "value")}
                ),
                "output": nnx.Dict({"dense": linear(width, width), "LayerNorm": norm()}),
            }
        )
        self.intermediate = nnx.Dict({"dense": linear(width, sizes.hidden)})
        self.output = nnx.Dict({"dense": linear(sizes.hidden, width), "LayerNorm": norm()})

    def __call__(
        self, x: Float[Array, "n t d"], mask: Bool[Array | np.ndarray, "n t"]
    ) -> Float[Array, "n t d"]:
        of_heads = self.attention["self"]
        query, key, value = (
            of_heads[name](x).reshape(*x.shape[:2], self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), value)
        after = self.attention["output"]
        x = after["LayerNorm"](x + after["dense"](mixed.reshape(x.shape)))
        hidden = ACTIVATIONS[self.activation](self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](hidden))


class TextEncoder(nnx.Module):
    """Texts as `{"input_ids", "attention_mask"}` (N, T) to logits (N, K), in evaluation mode: its
    dropout is left out.

    Padding, where the mask is 0, changes nothing: so a text gives the same logits, to rounding, at
    each length that holds it.

    Args:
        num_classes: K; None for a network without head.
        sizes: of the network.
        pooling: what a text is to the head: the `mean` of its tokens, or the `first` one.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        sizes: EncoderSizes,
        pooling: Pooling = "mean",
        rngs: nnx.Rngs,
    ):
        self.sizes, self.pooling = sizes, pooling
        tables = {
            "word_embeddings": Embedding(sizes.vocabulary, sizes.width, rngs=rngs),
            "position_embeddings": Embedding(sizes.positions, sizes.width, rngs=rngs),
            "LayerNorm": nnx.LayerNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs),
        }
        if sizes.types:
            tables["token_type_embeddings"] = Embedding(sizes.types, sizes.width, rngs=rngs)
        self.embeddings = nnx.Dict(tables)
        self.encoder = nnx.Dict(
            {
                "layer": nnx.Dict(
                    {str(index): TextLayer(sizes, rngs=rngs) for index in range(sizes.depth)}
                )
            }
        )
        self.head = linear_head(sizes.width, num_classes, rngs)

    def tokens(self, texts: Mapping[str, Any]) -> Float[Array, "n t d"]:
        """What the last layer makes of each token."""
        numbers = texts["input_ids"]
        if numbers.shape[1] > self.sizes.longest:
            raise ValueError(
                f"input_ids: this encoder takes at most {self.sizes.longest} tokens, got "
                f"{numbers.shape[1]}; cut the texts (--max-length)"
            )
        positions = self.sizes.first_position + jnp.arange(numbers.shape[1])[None]
        x = self.embeddings["word_embeddings"](numbers)
        x = x + self.embeddings["position_embeddings"](positions)
        if self.sizes.types:
            types = texts.get("token_type_ids", jnp.zeros_like(numbers))
            x = x + self.embeddings["token_type_embeddings"](types)
        x, mask = self.embeddings["LayerNorm"](x), texts["attention_mask"] != 0
        for index in range(self.sizes.depth):
            x = self.encoder["layer"][str(index)](x, mask)
        return x

    def features(self, texts: Mapping[str, Any]) -> Float[Array, "n d"]:
        x: Any = self.tokens(texts)
        if self.pooling == "first":
            return x[:, 0]
        kept = (texts["attention_mask"] != 0).astype(x.dtype)
        return jnp.einsum("ntd,nt->nd", x, kept) / jnp.maximum(kept.sum(1, keepdims=True), 1)

    def __call__(self, texts: Mapping[str, Any]) -> Float[Array, "n k"]:
        return apply_head(self.head, self.features(texts))
