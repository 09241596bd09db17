"""Which parameters train: the head, the last blocks, biases, norms, chosen names, or low-rank
adapters (LoRA).

A restricted network is a `Model` like any other, whose `params` are what trains and whose functions
close over the frozen rest; features, predictions, real training and batch-norm statistics then
follow without knowing.
"""

import dataclasses
import fnmatch
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ntk_tt.models.model import BatchStatistics, Model
from ntk_tt.runtime.parameter_names import named_leaves, path_name

HEAD_NAMES = ("head", "fc", "classifier", "linear")
_KEYWORDS = ("all", "head", "bias", "norm", "last", "glob", "regex", "lora")
_SMALL_RANK = 64  # that is taken of any kernel, of however few rows
_HOW = (
    "give all, head, bias, norm, last:2, glob:PATTERN, regex:PATTERN or lora:8, several joined by +"
)


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


def restrict(
    model: Model,
    trainable: str | LoRA | Sequence[str | LoRA] = "all",
    *,
    key: Key[Array, ""] | None = None,
) -> Model:
    """The network with only some of its parameters trainable.

    Args:
        model: any `Model`.
        trainable: what trains, one of these or several (in one string joined by `+`, as in
            `lora:8+head`):

            - `all`;
            - `head`: the last linear layer (`Model.head`, or what is called head, fc, classifier or
              linear);
            - `bias`: every bias; `norm`: scales and biases of the normalisation layers;
            - `last:2`: the last two numbered blocks (`layer4.0`, `layer4.1`; `block3`, …) and the
              head;
            - `glob:PATTERN`, `regex:PATTERN`: dotted names, the whole name against a glob, any part
              against a regular expression;
            - `lora:8`, `lora:8:16`: adapters of rank 8 (and α = 16) on every kernel that is not
              trained in full; or a `LoRA`.
        key: of the adapters' A; key 0 where none is given.

    Returns:
        A `Model` whose `params` hold the trainable arrays under their old names (frozen ones are
        None). With adapters they are `{"trained": those, "lora": {kernel's name: {"a", "b"}}}`.

    Raises:
        ValueError: an unknown or malformed specification, or one that matches no parameter; the
            names are listed.

    Cost: for frozen parameters no gradient is taken. An adapter's gradient passes through that of
    its whole kernel, formed for each sample and output, so the Jacobian of adapters costs more than
    that of the kernels (two to three times, for ResNet-8 on a CPU); only the dynamics and the
    memory of the features gain.
    """
    parts = _parts(trainable)
    leaves = named_leaves(model.params)
    if parts == ["all"]:
        return model
    chosen = {
        name
        for part in parts
        if isinstance(part, str)
        for name in _select(part, leaves, model.head)
    }
    trained, frozen = eqx.partition(model.params, _mask(model.params, chosen))
    adapters = _adapters([part for part in parts if isinstance(part, LoRA)], leaves, chosen)
    if not adapters:
        return _with_params(
            model,
            trained,
            lambda params: eqx.combine(params, frozen),
            head=_kept_head(model, leaves, chosen),
        )
    key = jax.random.key(0) if key is None else key
    pairs = {
        name: _initial_pair(name, leaves[name], adapter, key) for name, adapter in adapters.items()
    }

    kept = _kept_head(model, leaves, chosen)

    def whole(params):
        def adapted(path, leaf):
            name = path_name(path)
            return (
                leaf + _change(name, leaf, adapters[name], params["lora"][name])
                if name in adapters
                else leaf
            )

        return jax.tree_util.tree_map_with_path(adapted, eqx.combine(params["trained"], frozen))

    return _with_params(
        model, {"lora": pairs, "trained": trained}, whole, head=kept and f"trained.{kept}"
    )


def _with_params(
    model: Model, params: PyTree, whole: Callable[[PyTree], PyTree], *, head: str
) -> Model:
    """The same network as functions of other parameters, from which `whole` makes its own."""
    features, statistics = model.apply_features, model.batch_statistics
    if statistics is not None:
        apply_train, apply_eval = statistics.apply_train, statistics.apply_eval
        statistics = BatchStatistics(
            statistics.state,
            lambda params, state, images: apply_train(whole(params), state, images),
            lambda params, state, images: apply_eval(whole(params), state, images),
        )
    return dataclasses.replace(
        model,
        params=params,
        apply=lambda params, images: model.apply(whole(params), images),
        batch_statistics=statistics,
        apply_features=None
        if features is None
        else lambda params, images: features(whole(params), images),
        head=head,
    )


def _mask(params: PyTree, names: set[str]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path_name(path) in names, params)


def _kept_head(model: Model, leaves: dict[str, Array], chosen: set[str]) -> str:
    """`Model.head` if all of it trains, else empty."""
    of_head = {name for name in leaves if model.head and _is_under(name, model.head)}
    return model.head if of_head and of_head <= chosen else ""


# Specifications


def _parts(trainable: str | LoRA | Sequence[str | LoRA]) -> list[str | LoRA]:
    """The specification as a list, in which `lora:…` has become a `LoRA`."""
    given = [trainable] if isinstance(trainable, str | LoRA) else list(trainable)
    parts = [
        piece for part in given for piece in ([part] if isinstance(part, LoRA) else _split(part))
    ]
    if not parts:
        raise ValueError(f"trainable: nothing was given; {_HOW}")
    if len(parts) > 1 and "all" in parts:
        raise ValueError(
            f"trainable: 'all' cannot be combined, got {trainable!r}; take 'all' alone, or leave "
            "it out"
        )
    return [
        _parse_lora(part) if isinstance(part, str) and _keyword(part) == "lora" else part
        for part in parts
    ]


def _keyword(part: str) -> str:
    return part.partition(":")[0]


def _split(specification: str) -> list[str]:
    """Cut at each `+` before a keyword: a pattern may hold others."""
    pieces: list[str] = []
    for piece in specification.split("+"):
        if (
            pieces
            and _keyword(pieces[-1]) in ("glob", "regex")
            and _keyword(piece.strip()) not in _KEYWORDS
        ):
            pieces[-1] += "+" + piece
        else:
            pieces.append(piece.strip())
    return pieces


def _parse_lora(part: str) -> LoRA:
    try:
        rank, _, alpha = part.partition(":")[2].partition(":")
        numbers = int(rank), float(alpha) if alpha else None
    except ValueError as error:
        raise ValueError(
            f"trainable: cannot read {part!r}; give lora:RANK or lora:RANK:ALPHA, as in lora:8"
        ) from error
    return LoRA(*numbers)


def _select(part: str, leaves: dict[str, Array], head: str) -> list[str]:
    """The names of the parameters that a specification other than LoRA means; at least one."""
    keyword, _, argument = part.partition(":")
    match keyword:
        case "all" | "head" | "bias" | "norm" if argument:
            raise ValueError(f"trainable: {keyword!r} takes no argument, got {part!r}; {_HOW}")
        case "head":
            names = _under(_head_name(leaves, head), leaves)
        case "bias":
            names = [name for name in leaves if name.split(".")[-1] == "bias"]
        case "norm":
            names = [name for name in leaves if _is_norm(name, leaves)]
        case "last":
            if not argument.isdecimal() or int(argument) < 1:
                raise ValueError(
                    f"trainable: last takes the number of blocks, got {part!r}; give last:1, "
                    "last:2, …"
                )
            names = _last_blocks(int(argument), leaves, head)
        case "glob":
            names = [name for name in leaves if fnmatch.fnmatchcase(name, argument)]
        case "regex":
            try:
                names = [name for name in leaves if re.search(argument, name)]
            except re.error as error:
                raise ValueError(
                    f"trainable: {argument!r} is no regular expression ({error}); correct it, or "
                    "use glob:PATTERN"
                ) from error
        case _:
            raise ValueError(f"trainable: unknown {part!r}; {_HOW}")
    if not names:
        raise ValueError(f"trainable: {part!r} matches no parameter; there are {_listed(leaves)}")
    return names


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_under(name: str, group: str) -> bool:
    return name == group or name.startswith(group + ".")


def _under(group: str, leaves: dict[str, Array]) -> list[str]:
    return [name for name in leaves if _is_under(name, group)]


def _head_name(leaves: dict[str, Array], head: str) -> str:
    """The group of parameters that is the head: as the model says, else the outermost one with a
    usual name.

    Of a head with numbered layers (VGG's `classifier.0`, …) the last is meant.
    """
    if head:
        return head
    paths = [name.split(".") for name in leaves]
    for depth in range(max(map(len, paths)) - 1):
        groups = {
            ".".join(path[: depth + 1])
            for path in paths
            if len(path) > depth + 1 and path[depth] in HEAD_NAMES
        }
        if len(groups) == 1:
            (group,) = groups
            numbered = {
                part
                for name in _under(group, leaves)
                if (part := name[len(group) + 1 :].split(".")[0]).isdecimal()
            }
            return f"{group}.{max(numbered, key=int)}" if numbered else group
        if groups:
            raise ValueError(
                "trainable: more than one group of parameters could be the head: "
                f"{', '.join(sorted(groups))}; name it with glob:PATTERN"
            )
    raise ValueError(
        "trainable: cannot tell which parameters are the head: none is called "
        f"{', '.join(HEAD_NAMES)}; name them with glob:PATTERN, there are {_listed(leaves)}"
    )


def _is_norm(name: str, leaves: dict[str, Array]) -> bool:
    """Whether a parameter belongs to a normalisation layer: vectors only, one of them a `scale`, or
    a telling name.
    """
    group, _, _ = name.rpartition(".")
    siblings = {
        other.rpartition(".")[2]: leaf
        for other, leaf in leaves.items()
        if other.rpartition(".")[0] == group
    }
    telling = re.search(r"norm|^(bn|ln|gn)(_?\d+)?$", group.rpartition(".")[2], re.IGNORECASE)
    return all(leaf.ndim <= 1 for leaf in siblings.values()) and bool(
        "scale" in siblings or telling
    )


def _last_blocks(count: int, leaves: dict[str, Array], head: str) -> list[str]:
    """The parameters of the last numbered blocks, and of the head where there is one."""
    families: dict[str, set[str]] = {}
    for name in leaves:
        block = _block(name)
        if block:
            families.setdefault(re.sub(r"\d+", "#", block), set()).add(block)
    families = {family: blocks for family, blocks in families.items() if len(blocks) > 1}
    if not families:
        raise ValueError(
            f"trainable: there are no numbered blocks to take the last {count} of; name them with "
            f"glob:PATTERN, there are {_listed(leaves)}"
        )
    blocks = max(
        families.values(),
        key=lambda blocks: sum(
            leaf.size for name, leaf in leaves.items() if _block(name) in blocks
        ),
    )
    if count > len(blocks):
        raise ValueError(
            f"trainable: last:{count} asks for more than the {len(blocks)} blocks "
            f"{_listed(sorted(blocks, key=_natural))}; take at most that"
        )
    last = sorted(blocks, key=_natural)[-count:]
    try:
        with_head = _under(_head_name(leaves, head), leaves)
    except ValueError:  # a network whose layers have numbers only: its head is the last of them
        with_head = []
    return [name for name in leaves if _block(name) in last or name in with_head]


def _block(name: str) -> str:
    """`layer4.1` of layer4.1.conv2.kernel, `block3` of block3.conv1.kernel: up to the first number,
    and one level more if that is a number alone.
    """
    path = name.split(".")
    for depth, part in enumerate(path[:-1]):
        if re.search(r"\d", part):
            deeper = (
                depth + 1 < len(path) - 1 and path[depth + 1].isdecimal() and not part.isdecimal()
            )
            return ".".join(path[: depth + 2 if deeper else depth + 1])
    return ""


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


# Low-rank adapters


def _adapters(loras: list[LoRA], leaves: dict[str, Array], chosen: set[str]) -> dict[str, LoRA]:
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
                f"give LoRA(rank, pattern=...) for some of: {_listed(wide) or 'none'}"
            )
        ranks = {
            name: min(
                outputs := leaves[name].shape[_output_axis(name, leaves[name], lora)],
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


def _output_axis(name: str, kernel: Array, lora: LoRA) -> int:
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


def _initial_pair(
    name: str, kernel: Array, lora: LoRA, key: Key[Array, ""]
) -> dict[str, Float[Array, "_ _"]]:
    """A from the kernel's own key, B = 0."""
    outputs = kernel.shape[_output_axis(name, kernel, lora)]
    rows = kernel.size // outputs
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return {
        "a": jax.random.uniform(
            own_key, (rows, lora.rank), kernel.dtype, -(rows**-0.5), rows**-0.5
        ),
        "b": jnp.zeros((lora.rank, outputs), kernel.dtype),
    }


def _change(
    name: str, kernel: Array, lora: LoRA, pair: dict[str, Float[Array, "_ _"]]
) -> Float[Array, "..."]:
    """(α/r)·A B in the shape of the kernel."""
    axis = _output_axis(name, kernel, lora)
    outputs_last = jnp.moveaxis(kernel, axis, -1).shape
    product = jnp.matmul(pair["a"], pair["b"], precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis((lora.scale * product).reshape(outputs_last), -1, axis)
