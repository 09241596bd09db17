"""Vision transformer (Dosovitskiy et al. 2021) with torchvision's names; ViT-S/16 and ViT-B/16 are
sizes of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ntk_tt.models.zoo.blocks import apply_head, linear_head
from ntk_tt.models.zoo.convolution import Convolution

EPSILON = 1e-6
HEAD_WIDTH = 64  # of every published size


class SelfAttention(nnx.Module):
    """softmax(q kᵀ / √width) v for each head, q, k and v from one matrix."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.in_proj_kernel = nnx.Param(
            nnx.initializers.glorot_uniform()(rngs.params(), (width, 3 * width), jnp.float32)
        )
        self.in_proj_bias = nnx.Param(jnp.zeros((3 * width,)))
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        split = (x @ self.in_proj_kernel[...] + self.in_proj_bias[...]).reshape(
            *x.shape[:2], 3, self.num_heads, -1
        )
        query, key, value = (split[:, :, index] for index in range(3))
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), value)
        return self.out_proj(mixed.reshape(x.shape))


class EncoderBlock(nnx.Module):
    """Attention and a two-layer network, each normalised before and added after."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.self_attention = SelfAttention(width, num_heads, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = nnx.Dict(
            {"0": nnx.Linear(width, hidden, rngs=rngs), "3": nnx.Linear(hidden, width, rngs=rngs)}
        )

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        x = x + self.self_attention(self.ln_1(x))
        y = jax.nn.gelu(self.mlp["0"](self.ln_2(x)), approximate=False)
        return x + self.mlp["3"](y)


class Encoder(nnx.Module):
    """Position embedding, blocks and the last norm."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.pos_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (1, num_tokens, width))
        )
        self.layers = nnx.Dict(
            {
                f"encoder_layer_{index}": EncoderBlock(width, num_heads, hidden, rngs=rngs)
                for index in range(depth)
            }
        )
        self.ln = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, tokens: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        x = tokens + self.pos_embedding[...]
        for index in range(len(self.layers)):
            x = self.layers[f"encoder_layer_{index}"](x)
        return self.ln(x)


class VisionTransformer(nnx.Module):
    """Images (N, H, W, 3) of one size to logits (N, K), in evaluation mode: its dropout is left
    out.

    Args:
        num_classes: K; None for a network without head.
        image_size: side of the images, a multiple of `patch` [pixels].
        patch: side of the patches that become tokens [pixels].
        width: of a token; heads are 64 wide.
        depth: encoder blocks.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        image_size: int,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        head_width: int = HEAD_WIDTH,
        rngs: nnx.Rngs,
    ):
        self.patch, self.grid = patch, image_size // patch
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.conv_proj = Convolution(3, width, patch, stride=patch, use_bias=True, rngs=rngs)
        self.encoder = Encoder(
            self.grid**2 + 1, width, depth, width // head_width, 4 * width, rngs=rngs
        )
        self.heads = nnx.Dict({"head": linear_head(width, num_classes, rngs)})

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        if images.shape[1:3] != (self.grid * self.patch,) * 2:
            raise ValueError(
                f"images: this transformer was built for {self.grid * self.patch} pixels a side, "
                f"got {images.shape[1:3]}; "
                "resize them, or give load_model their image_size"
            )
        patches = self.conv_proj(images).reshape(len(images), self.grid**2, -1)
        token = jnp.broadcast_to(self.class_token[...], (len(images), 1, patches.shape[-1]))
        return self.encoder(jnp.concatenate([token, patches], axis=1))[:, 0]

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
        return apply_head(self.heads["head"], self.features(images))


def resize_positions(embedding: np.ndarray, grid: int) -> np.ndarray:
    """A position embedding (1, 1 + side², d) for `grid`×`grid` patches, bicubic; the class token's
    is kept.

    Raises:
        ValueError: the embedding is not that of a class token and a square.
    """
    side = round((embedding.shape[1] - 1) ** 0.5)
    if side * side != embedding.shape[1] - 1:
        raise ValueError(
            f"weights: a position embedding of {embedding.shape[1]} tokens is not a class token "
            "and a square of patches; it cannot be resized"
        )
    if side == grid:
        return embedding
    square = embedding[:, 1:].astype(np.float32).reshape(1, side, side, -1)
    resized = jax.image.resize(
        square, (1, grid, grid, square.shape[-1]), "bicubic", antialias=False
    )
    return np.concatenate(
        [embedding[:, :1], np.asarray(resized).reshape(1, grid * grid, -1)], axis=1
    )
