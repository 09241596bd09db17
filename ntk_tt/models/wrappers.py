"""Which of a file's tensors are the network's: containers and wrappers around it come off, and a
second copy is left out.

A training state holds the network under a name (`state_dict`), wrappers put one before every
parameter's (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of Lightning), and
they nest. Where the network is known, the part of the file that has its names is found whatever the
prefix is called; else only prefixes that say nothing come off.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ntk_tt.models.stored import Stored, quoted
from ntk_tt.models.torch_format import is_counter, our_name

# the first that is there is taken
_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "weights",
    "params",
)
_PLAIN_PREFIXES = ("module.", "_orig_mod.")
# under a prefix there must be an eighth of the network's names: a checkpoint may be cut after a
# stage
_SHARE = 8
_MAX_DEPTH = 12  # parts of a name that may be a prefix
_AVERAGED = re.compile(
    r"(?:^|[^a-z])(?:ema|swa|averaged?|shadow|polyak)(?![a-z])|_ema$|^ema", re.IGNORECASE
)
# numbers of an optimiser or of its parameters, under the names of the network's
_OF_OPTIMISER = re.compile(
    r"(?:^|[^a-z])(?:optim(?:i[sz]er)?|exp_avg(?:_sq)?|momentum|grads?|gradients?|master)(?![a-z])",
    re.IGNORECASE,
)
# wrappers of a module within the network: of torch.compile, FSDP, activation checkpointing
_INNER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# What training adds beside a network, by the first part of its name.
_BESIDE = re.compile(
    r"(?:^|_)(?:criterion|loss|loss_fn|losses|metrics?|accuracy|acc|acc1|acc5|auroc|f1|confmat|ema"
    r"|swa)(?:_|$)|_ema$",
    re.IGNORECASE,
)


class Chosen(NamedTuple):
    """The network's tensors by name, without prefix, and what was left aside, in words; empty where
    nothing was.
    """

    tensors: dict[str, Stored]
    note: str


def choose(
    tensors: Mapping[str, Stored], known: Callable[[str], bool] | None, num_known: int, source: str
) -> Chosen:
    """The tensors of the network.

    Of two whole copies the one without prefix is taken, else the one that is no running average
    (EMA, SWA) and nothing of an optimiser's.

    Args:
        tensors: all of the file; a container's name ends with a slash.
        known: whether the network has a parameter of this name, ours or as published.
        num_known: how many it has.
        source: the file, for messages.

    Raises:
        ValueError: several copies of the network, and none is the plain one; they are named.
    """
    copies = [] if known is None else _copies(tensors, known, num_known)
    if len(copies) < 2:
        prefix, others = (copies[0] if copies else _plain_prefix(list(tensors))), []
    else:
        prefix = _plain_copy(copies, source)
        others = [copy for copy in copies if copy != prefix]
    taken = {
        name.removeprefix(prefix): stored
        for name, stored in tensors.items()
        if name.startswith(prefix)
        and not any(len(other) > len(prefix) and name.startswith(other) for other in others)
    }
    taken = _unwrapped({name: stored for name, stored in taken.items() if not is_counter(name)})
    roots = {
        re.split(r"[./]", name)[0]
        for name in taken
        if known is not None and known(our_name(name, len(taken[name].shape)))
    }
    beside = [
        name
        for name in taken
        if known is not None
        and (root := re.split(r"[./]", name)[0]) not in roots
        and ("/" in name or _BESIDE.search(root))
    ]
    container = prefix[: prefix.rfind("/") + 1]
    outside = [
        name
        for name in tensors
        if name.startswith(container)
        and not name.startswith(prefix)
        and not is_counter(name)
        and not any(name.startswith(other) for other in others)
    ]
    return Chosen(
        {name: stored for name, stored in taken.items() if name not in beside},
        _note(prefix, others, beside + outside),
    )


def _unwrapped(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Names without the wrappers within, unless two would be one then."""
    names = {name: _INNER.sub("", name) for name in tensors}
    if len(set(names.values())) < len(names):
        return tensors
    return {names[name]: stored for name, stored in tensors.items()}


def _copies(
    tensors: Mapping[str, Stored], known: Callable[[str], bool], num_known: int
) -> list[str]:
    """The prefixes under each of which there is a copy of the network, or as much of it as a cut
    checkpoint holds.
    """
    found: dict[str, set[str]] = {}
    for name, stored in tensors.items():
        for start in [
            0,
            *(
                match.end()
                for match, _ in zip(re.finditer(r"[./]", name), range(_MAX_DEPTH), strict=False)
            ),
        ]:
            if known(our_name(name[start:], len(stored.shape))):
                found.setdefault(name[:start], set()).add(name)
    found = {
        prefix: names
        for prefix, names in found.items()
        if not prefix or len(names) * _SHARE >= num_known
    }
    largest = max(map(len, found.values()), default=0)
    copies: dict[str, set[str]] = {}
    for prefix, names in sorted(found.items(), key=lambda item: (-len(item[1]), len(item[0]))):
        # else other names of the same tensors
        if 2 * len(names) >= largest and not any(names & others for others in copies.values()):
            copies[prefix] = names
    return list(copies)


def _plain_copy(copies: Sequence[str], source: str) -> str:
    """The copy that is meant where there are several."""
    if "" in copies:
        return ""
    plain = [
        copy
        for copy in copies
        if not any(
            _AVERAGED.search(part) or _OF_OPTIMISER.search(part) for part in re.split(r"[./]", copy)
        )
    ]
    if len(plain) != 1:
        raise ValueError(
            f"weights: {source} holds the network {len(copies)} times, under "
            f"{', '.join(quoted(copy.rstrip('./')) for copy in copies[:5])}; save the one you mean "
            "alone"
        )
    return plain[0]


def _plain_prefix(names: list[str]) -> str:
    """Containers of a usual name, or without another beside them, and then wrappers that are on
    every name and say nothing.
    """
    prefix = ""
    while True:
        inside = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        containers = list(dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name))
        usual = [name for name in _CONTAINERS if name in containers]
        if usual or (len(containers) == 1 and all("/" in name for name in inside)):
            prefix += f"{(usual or containers)[0]}/"
            continue
        wrapper = next(
            (
                each
                for each in _PLAIN_PREFIXES
                if all(name.startswith(each) or is_counter(name) for name in inside)
            ),
            None,
        )
        if wrapper is None:
            return prefix
        prefix += wrapper


def _note(prefix: str, others: Sequence[str], beside: Sequence[str]) -> str:
    notes = []
    wrapper = prefix[prefix.rfind("/") + 1 :]
    if others:
        notes.append(
            f"weights under {quoted(prefix.rstrip('./') or 'no prefix')}, not under "
            f"{', '.join(quoted(other.rstrip('./')) for other in others[:3])}"
        )
    elif wrapper:
        notes.append(f"weights' names without {quoted(wrapper)}")
    if beside:
        notes.append(
            f"left out of the checkpoint: {quoted(beside[0])}"
            + (f" and {len(beside) - 1} more" if len(beside) > 1 else "")
        )
    return "; ".join(notes)
