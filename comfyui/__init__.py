"""Nodes for ComfyUI: link this folder into ``custom_nodes``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("SDMatte") is None:
    # Not installed: the package is beside the folder that the link points to.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
