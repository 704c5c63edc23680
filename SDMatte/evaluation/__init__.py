"""Metrics, protocols, evaluators and reports; knows nothing of data sets or models.

Only `MatteEvaluator` needs detectron2 and torch, so that it is imported when asked for.
"""

from typing import TYPE_CHECKING, Any

from SDMatte.evaluation.folder import score_folder
from SDMatte.evaluation.metrics import connectivity, gradient, mad, mse, sad
from SDMatte.evaluation.protocols import PROTOCOLS, Protocol, finish_alpha, score_pair
from SDMatte.evaluation.report import write_report
from SDMatte.evaluation.results import EvaluationResult, PictureScore

if TYPE_CHECKING:
    from SDMatte.evaluation.evaluator import MatteEvaluator

__all__ = [
    "PROTOCOLS",
    "EvaluationResult",
    "MatteEvaluator",
    "PictureScore",
    "Protocol",
    "connectivity",
    "finish_alpha",
    "gradient",
    "mad",
    "mse",
    "sad",
    "score_folder",
    "score_pair",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "MatteEvaluator":
        from SDMatte.evaluation.evaluator import MatteEvaluator

        return MatteEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
