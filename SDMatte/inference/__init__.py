"""Interactive use: pictures and prompts in, mattes and cut-outs out."""

from SDMatte.inference.predictor import EncodedImage, MattePredictor
from SDMatte.inference.result import MatteResult

__all__ = ["EncodedImage", "MattePredictor", "MatteResult"]
