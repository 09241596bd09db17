"""Which parameters train: the head, the last blocks, biases, norms, chosen names, or low-rank
adapters (LoRA).

A restricted network is a `Model` like any other, whose `params` are what trains and whose functions
close over the frozen rest; features, predictions, real training and batch-norm statistics then
follow without knowing.
"""

import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree

from ntk_tt.models.lora import LoRA, adapters_of, change_of, initial_pair, parse_lora
from ntk_tt.models.model import BatchStatistics, Model
from ntk_tt.models.named_parts import HOW, is_under, keyword_of, select, split_parts
from ntk_tt.runtime.parameter_names import named_leaves, path_name


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
        name for part in parts if isinstance(part, str) for name in select(part, leaves, model.head)
    }
    trained, frozen = eqx.partition(model.params, _mask(model.params, chosen))
    adapters = adapters_of([part for part in parts if isinstance(part, LoRA)], leaves, chosen)
    if not adapters:
        return _with_params(
            model,
            trained,
            lambda params: eqx.combine(params, frozen),
            head=_kept_head(model, leaves, chosen),
        )
    key = jax.random.key(0) if key is None else key
    pairs = {
        name: initial_pair(name, leaves[name], adapter, key) for name, adapter in adapters.items()
    }

    kept = _kept_head(model, leaves, chosen)

    def whole(params):
        def adapted(path, leaf):
            name = path_name(path)
            return (
                leaf + change_of(name, leaf, adapters[name], params["lora"][name])
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
    of_head = {name for name in leaves if model.head and is_under(name, model.head)}
    return model.head if of_head and of_head <= chosen else ""


def _parts(trainable: str | LoRA | Sequence[str | LoRA]) -> list[str | LoRA]:
    """The specification as a list, in which `lora:…` has become a `LoRA`."""
    given = [trainable] if isinstance(trainable, str | LoRA) else list(trainable)
    parts = [
        piece
        for part in given
        for piece in ([part] if isinstance(part, LoRA) else split_parts(part))
    ]
    if not parts:
        raise ValueError(f"trainable: nothing was given; {HOW}")
    if len(parts) > 1 and "all" in parts:
        raise ValueError(
            f"trainable: 'all' cannot be combined, got {trainable!r}; take 'all' alone, or leave "
            "it out"
        )
    return [
        parse_lora(part) if isinstance(part, str) and keyword_of(part) == "lora" else part
        for part in parts
    ]
