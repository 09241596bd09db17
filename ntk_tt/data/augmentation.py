"""Random crops and flips of images, drawn anew each time that an image is seen."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_KINDS = ("crop", "flip")
_PADDING = 1 / 8  # of the side, as 4 of 32 pixels


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How images are changed before each look at them. Real training draws anew in each step; a
    prediction is made of a few draws of each image.

    Attributes:
        crop: pad each side by an eighth, with what is reflected there, and cut out a random part of
            the size before.
        flip: left to right, every other time.
        draws: of each image in a prediction, whose passes cost so many times as much.
    """

    crop: bool = True
    flip: bool = True
    draws: int = 2

    def __post_init__(self) -> None:
        if not (self.crop or self.flip):
            raise ValueError("augment: neither crop nor flip; leave it out for images as they are")
        if not (isinstance(self.draws, int) and self.draws >= 1):
            raise ValueError(f"draws: must be a whole number of at least 1, got {self.draws!r}")

    @classmethod
    def read(cls, text: str) -> "Augmentation":
        """Of `crop,flip`, or one of them.

        Raises:
            ValueError: another word.
        """
        words = [word.strip() for word in text.split(",")]
        unknown = [word for word in words if word not in _KINDS]
        if unknown:
            raise ValueError(f"augment: give crop, flip or crop,flip, got {text!r}")
        return cls("crop" in words, "flip" in words)

    @property
    def words(self) -> str:
        """As `read` takes them."""
        return ",".join(kind for kind in _KINDS if getattr(self, kind))

    def check(self, inputs: Any) -> None:
        """Raises ValueError where inputs are no images (N, H, W, C)."""
        leaves = jax.tree.leaves(inputs)
        if len(leaves) != 1 or np.ndim(leaves[0]) != 4:
            raise ValueError(
                "augment: crops and flips are of images (N, H, W, C), and the inputs are "
                f"{[np.shape(leaf) for leaf in leaves]}"
            )

    def of(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        indices: Int[Array | np.ndarray, " b"],
        draw: Any,
        seed: Any = 0,
    ) -> Float[Array, "b h w c"]:
        """A draw of some images; their numbers among all, the draw's and the seed say which."""
        key = jax.random.fold_in(jax.random.key(seed), draw)
        return jax.vmap(partial(self._one, key))(jnp.asarray(images), jnp.asarray(indices))

    def views(
        self, images: Float[Array | np.ndarray, "n h w c"], seed: int
    ) -> Float[np.ndarray, "m h w c"]:
        """`draws` of each image, those of one beside each other."""
        images, indices = jnp.asarray(images), jnp.arange(len(images))
        drawn = [_drawn(self, images, indices, draw, seed) for draw in range(self.draws)]
        return np.stack([np.asarray(each) for each in drawn], 1).reshape(-1, *images.shape[1:])

    def _one(self, key: Array, image: Array, number: Array) -> Array:
        of_place, of_side = jax.random.split(jax.random.fold_in(key, number))
        height, width, channels = image.shape
        if self.crop:
            by = [max(1, round(side * _PADDING)) for side in (height, width)]
            padded = jnp.pad(image, ((by[0], by[0]), (by[1], by[1]), (0, 0)), mode="symmetric")
            most = jnp.asarray([2 * by[0] + 1, 2 * by[1] + 1])
            place = jax.random.randint(of_place, (2,), 0, most)
            image = jax.lax.dynamic_slice(padded, (*place, 0), (height, width, channels))
        if self.flip:
            image = jnp.where(jax.random.bernoulli(of_side), image[:, ::-1], image)
        return image


@partial(jax.jit, static_argnums=0)
def _drawn(augmentation, images, indices, draw, seed):
    return augmentation.of(images, indices, draw, seed)
