"""What is kept of the Jacobian: features Φ = J R, computed in planned blocks, in memory or on disk.

Comes in: a network and its samples. Goes out: Φ (N, C, D'), or a store of it that can be resumed.
"""

from ntk_tt.features.compute import compute_features, jacobian_features
from ntk_tt.features.contrasts import Outputs, contrast_basis, in_contrasts, stored_outputs
from ntk_tt.features.count_sketch import CountSketch
from ntk_tt.features.dimension import choose_num_projections, projection_advice
from ntk_tt.features.feature_options import FeatureOptions
from ntk_tt.features.parameter_sample import ParameterSample, sample_parameters
from ntk_tt.features.plan import FeaturePlan, plan_features
from ntk_tt.features.projection_by_name import make_projection
from ntk_tt.features.projections import (
    AbstractProjection,
    AbstractSketch,
    Achlioptas,
    Gaussian,
    Identity,
)
from ntk_tt.features.store import FeatureStore, default_folder
from ntk_tt.features.write import write_features

__all__ = [
    "AbstractProjection",
    "AbstractSketch",
    "Achlioptas",
    "CountSketch",
    "FeatureOptions",
    "FeaturePlan",
    "FeatureStore",
    "Gaussian",
    "Identity",
    "Outputs",
    "ParameterSample",
    "choose_num_projections",
    "compute_features",
    "contrast_basis",
    "default_folder",
    "in_contrasts",
    "jacobian_features",
    "make_projection",
    "plan_features",
    "projection_advice",
    "sample_parameters",
    "stored_outputs",
    "write_features",
]
