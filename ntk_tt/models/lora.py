"""Low-rank adapters (LoRA): kernels that move by the product of two small matrices."""

import dataclasses
import fnmatch
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ntk_tt.models.named_parts import listed

_SMALL_RANK = 64  # that is taken of any kernel, of however few rows


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: w = w₀ + (α/r)·A B with B = 0 at the start (Hu et al. 2021).

    A kernel is seen as a matrix, all axes but that of the outputs × outputs: (kh·kw·in, out) for a
    convolution. A (rows, r) is uniform in ±1/√rows, as in the authors' code; B (r, out) is zero, so
    the network starts unchanged.

    Attributes:
        rank: r.
        alpha: α; None takes r, so that the product is not scaled.
        pattern: glob over dotted names, of the kernels to adapt; the default takes every dense and
            convolution kernel (a leaf of two axes or more called `kernel` or `weight`) that is not
            trained in full.
        output_axis: of the kernels; None takes the first for leaves called `weight` (PyTorch,
            Equinox), else the last (Flax).
    """

    rank: int
    alpha: float | None = None
    pattern: str = ""
    output_axis: int | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank: must be at least 1, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha: must be positive, got {self.alpha}")
        if self.alpha == float("inf"):
            raise ValueError(f"alpha: must be finite, got {self.alpha}")

    @property
    def scale(self) -> float:
        """α/r."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


def parse_lora(part: str) -> LoRA:
    try:
        rank, _, alpha = part.partition(":")[2].partition(":")
        numbers = int(rank), float(alpha) if alpha else None
    except ValueError as error:
        raise ValueError(
            f"trainable: cannot read {part!r}; give lora:RANK or lora:RANK:ALPHA, as in lora:8"
        ) from error
    return LoRA(*numbers)


def adapters_of(loras: list[LoRA], leaves: dict[str, Array], chosen: set[str]) -> dict[str, LoRA]:
    """Which kernel gets which adapter; the first that matches."""
    wide = [name for name, leaf in leaves.items() if leaf.ndim >= 2 and name not in chosen]
    found: dict[str, LoRA] = {}
    for lora in loras:
        kernels = (
            [name for name in wide if fnmatch.fnmatchcase(name, lora.pattern)]
            if lora.pattern
            else [name for name in wide if name.split(".")[-1] in ("kernel", "weight")]
        )
        if not kernels:
            raise ValueError(
                "trainable: low-rank adapters need kernels of two axes or more, and "
                f"{lora.pattern or 'kernel or weight'!r} matches none that is not trained in "
                "full; "
                f"give LoRA(rank, pattern=...) for some of: {listed(wide) or 'none'}"
            )
        ranks = {
            name: min(
                outputs := leaves[name].shape[output_axis(name, leaves[name], lora)],
                leaves[name].size // max(1, outputs),
            )
            for name in kernels
        }
        most = max(_SMALL_RANK, *ranks.values())
        if lora.rank > most:
            raise ValueError(
                f"trainable: adapters of rank {lora.rank} are larger than any kernel they would "
                f"adapt; take a rank of at most {most}"
            )
        found |= {name: lora for name in kernels if name not in found}
    return found


def output_axis(name: str, kernel: Array, lora: LoRA) -> int:
    axis = (
        lora.output_axis
        if lora.output_axis is not None
        else 0
        if name.split(".")[-1] == "weight"
        else -1
    )
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(
            f"output_axis: {name!r} has {kernel.ndim} axes, got {axis}; give one of them"
        )
    return axis


def initial_pair(
    name: str, kernel: Array, lora: LoRA, key: Key[Array, ""]
) -> dict[str, Float[Array, "_ _"]]:
    """A from the kernel's own key, B = 0."""
    outputs = kernel.shape[output_axis(name, kernel, lora)]
    rows = kernel.size // outputs
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return {
        "a": jax.random.uniform(
            own_key, (rows, lora.rank), kernel.dtype, -(rows**-0.5), rows**-0.5
        ),
        "b": jnp.zeros((lora.rank, outputs), kernel.dtype),
    }


def change_of(
    name: str, kernel: Array, lora: LoRA, pair: dict[str, Float[Array, "_ _"]]
) -> Float[Array, "..."]:
    """(α/r)·A B in the shape of the kernel."""
    axis = output_axis(name, kernel, lora)
    outputs_last = jnp.moveaxis(kernel, axis, -1).shape
    product = jnp.matmul(pair["a"], pair["b"], precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis((lora.scale * product).reshape(outputs_last), -1, axis)
