"""The whole: a network, its data and an optimiser setting in, training times and how far to believe
them out.
"""

from ntk_tt.prediction.assessment import assess
from ntk_tt.prediction.margin import margin_on_the_way, predicted_path, stability
from ntk_tt.prediction.one_setting import Prediction, predict
from ntk_tt.prediction.one_shot import OneShot, predict_after
from ntk_tt.prediction.residual import Residual, linearization_residual
from ntk_tt.prediction.safe_rate import SafeRate, safe_learning_rate
from ntk_tt.prediction.verdict import Verdict, judge

__all__ = [
    "OneShot",
    "Prediction",
    "Residual",
    "SafeRate",
    "Verdict",
    "assess",
    "judge",
    "linearization_residual",
    "margin_on_the_way",
    "predict",
    "predict_after",
    "predicted_path",
    "safe_learning_rate",
    "stability",
]
