"""The projections that a user can name."""

from jaxtyping import Array, Key

from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.feature_options import ProjectionName
from ntk_tt.features.projections import AbstractProjection, Achlioptas, Gaussian, Identity

_PROJECTIONS = {"fold": CountSketch, "gaussian": Gaussian, "achlioptas": Achlioptas}


def make_projection(
    name: ProjectionName, num_params: int, num_projections: int, key: Key[Array, ""]
) -> AbstractProjection:
    """The named projection onto `num_projections` dimensions; `Identity` where that is no fewer
    than the parameters.

    Raises:
        ValueError: unknown name or a dimension below 1.
    """
    if name not in _PROJECTIONS:
        raise ValueError(f"projection: unknown {name!r}; known: {', '.join(_PROJECTIONS)}")
    if num_projections < 1:
        raise ValueError(f"num_projections: must be at least 1, got {num_projections}")
    if num_projections >= num_params:
        return Identity(num_params)
    return _PROJECTIONS[name](key=key, num_projections=num_projections)
