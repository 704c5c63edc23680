"""The models, their losses, and what turns pretrained weights into theirs."""

from SDMatte.modeling.lite import LiteSDMatte
from SDMatte.modeling.sdmatte import SDMatte

__all__ = ["LiteSDMatte", "SDMatte"]
