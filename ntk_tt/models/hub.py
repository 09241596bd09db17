"""Weights of the Hugging Face hub: which of the files there are taken."""

from collections.abc import Callable
from pathlib import Path

from ntk_tt.models.shards import files_of
from ntk_tt.models.stored import reason

# Under which names weights are kept there, in the order in which they are asked for.
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def fetch(repository: str) -> Path:
    """The file of a repository's weights, or the index of several beside it, in the hub's own
    cache.

    Raises:
        ValueError: huggingface_hub is not installed, or the hub has none of `NAMES` there.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ValueError(
            "weights: 'hf:' needs huggingface_hub; install it with: pip install 'ntk-tt[hub]'"
        ) from error
    for name in NAMES:
        try:
            file = Path(_asked(hf_hub_download, repository, name, errors.EntryNotFoundError))
        except errors.EntryNotFoundError:
            continue
        if name.endswith(".json"):
            for shard in sorted(set(files_of(file).values())):
                _asked(hf_hub_download, repository, shard)
        return file
    raise ValueError(
        f"weights: {repository!r} has none of {', '.join(NAMES)} on the hub; download the file "
        "that it has and give its path"
    )


def fetch_folder(repository: str) -> Path:
    """The folder in the hub's own cache with a network's configuration, tokenizer and weights.

    Raises:
        ValueError: huggingface_hub is not installed, or the hub does not have them.
    """
    weights = fetch(repository)
    from huggingface_hub import errors, hf_hub_download

    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        try:
            _asked(hf_hub_download, repository, name, errors.EntryNotFoundError)
        except errors.EntryNotFoundError as error:
            if name != "1_Pooling/config.json":
                raise ValueError(
                    f"model: {repository!r} has no {name} on the hub; save one there, or give a "
                    "folder that has it"
                ) from error
    return weights.parent


def _asked(
    download: Callable[[str, str], str],
    repository: str,
    name: str,
    *absent: type[Exception],
) -> str:
    try:
        return download(repository, name)
    except absent:
        raise
    except Exception as error:  # the hub's own many kinds: the file cannot be had
        raise ValueError(
            f"weights: cannot get {name} of {repository!r} from the hub ({reason(error)}); check "
            "the name and the network"
        ) from error
