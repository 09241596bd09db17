"""Parts of a network by their names: the head, norms, biases, the last blocks, patterns."""

import fnmatch
import re
from collections.abc import Iterable

from jaxtyping import Array

HEAD_NAMES = ("head", "fc", "classifier", "linear")


KEYWORDS = ("all", "head", "bias", "norm", "last", "glob", "regex", "lora")


HOW = (
    "give all, head, bias, norm, last:2, glob:PATTERN, regex:PATTERN or lora:8, several joined by +"
)


def keyword_of(part: str) -> str:
    return part.partition(":")[0]


def split_parts(specification: str) -> list[str]:
    """Cut at each `+` before a keyword: a pattern may hold others."""
    pieces: list[str] = []
    for piece in specification.split("+"):
        if (
            pieces
            and keyword_of(pieces[-1]) in ("glob", "regex")
            and keyword_of(piece.strip()) not in KEYWORDS
        ):
            pieces[-1] += "+" + piece
        else:
            pieces.append(piece.strip())
    return pieces


def select(part: str, leaves: dict[str, Array], head: str) -> list[str]:
    """The names of the parameters that a specification other than LoRA means; at least one."""
    keyword, _, argument = part.partition(":")
    match keyword:
        case "all" | "head" | "bias" | "norm" if argument:
            raise ValueError(f"trainable: {keyword!r} takes no argument, got {part!r}; {HOW}")
        case "head":
            names = under(head_name(leaves, head), leaves)
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
            raise ValueError(f"trainable: unknown {part!r}; {HOW}")
    if not names:
        raise ValueError(f"trainable: {part!r} matches no parameter; there are {listed(leaves)}")
    return names


def listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_under(name: str, group: str) -> bool:
    return name == group or name.startswith(group + ".")


def under(group: str, leaves: dict[str, Array]) -> list[str]:
    return [name for name in leaves if is_under(name, group)]


def head_name(leaves: dict[str, Array], head: str) -> str:
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
                for name in under(group, leaves)
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
        f"{', '.join(HEAD_NAMES)}; name them with glob:PATTERN, there are {listed(leaves)}"
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
            f"glob:PATTERN, there are {listed(leaves)}"
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
            f"{listed(sorted(blocks, key=_natural))}; take at most that"
        )
    last = sorted(blocks, key=_natural)[-count:]
    try:
        with_head = under(head_name(leaves, head), leaves)
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
