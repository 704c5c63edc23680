"""The models, their losses, and the conversion of pretrained weights."""

from SDMatte.modeling.lite import LiteSDMatte
from SDMatte.modeling.sdmatte import SDMatte

__all__ = ["LiteSDMatte", "SDMatte"]
