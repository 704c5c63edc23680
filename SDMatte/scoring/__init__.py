"""Scoring: metrics, protocols, comparisons and reports; independent of torch, models and data."""

from SDMatte.scoring.folder import score_folder
from SDMatte.scoring.metrics import connectivity, gradient, mad, mse, sad
from SDMatte.scoring.protocols import PROTOCOLS, Protocol, score_pair
from SDMatte.scoring.report import write_report
from SDMatte.scoring.results import EvaluationResult, ImageScore

__all__ = [
    "PROTOCOLS",
    "EvaluationResult",
    "ImageScore",
    "Protocol",
    "connectivity",
    "gradient",
    "mad",
    "mse",
    "sad",
    "score_folder",
    "score_pair",
    "write_report",
]
