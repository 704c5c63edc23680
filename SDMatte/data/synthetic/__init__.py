"""Drawn pictures with exact mattes in the real sets' own layouts.

The embedded sample set shows hair, fur, lattices, soft edges, glass, smoke, text and leaves over
photographs that installed packages bring along; its test part has kinds of foreground and
photographs that training never shows. Miniature trees stand in for the known sets.
"""

from SDMatte.data.synthetic.layouts import LAYOUTS, make_layouts
from SDMatte.data.synthetic.photos import Photograph, background, real_photographs
from SDMatte.data.synthetic.registry import foreground, kinds
from SDMatte.data.synthetic.sample_set import SampleSet, make_sample_set

__all__ = [
    "LAYOUTS",
    "Photograph",
    "SampleSet",
    "background",
    "foreground",
    "kinds",
    "make_layouts",
    "make_sample_set",
    "real_photographs",
]
