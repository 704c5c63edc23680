"""Drawn pictures with exact mattes in the real sets' own layouts.

The embedded sample set shows hair, fur, lattices, soft edges, glass, smoke, text and leaves over
photographs that installed packages bring along; its test part has kinds of foreground and
photographs that training never shows. Miniature trees stand in for the known sets.
"""

from SDMatte.samples.layouts import LAYOUTS, make_layouts
from SDMatte.samples.photos import Photograph, background, real_photographs
from SDMatte.samples.registry import foreground, kinds
from SDMatte.samples.sample_set import SampleSet, make_sample_set

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
