"""The embedded sample set: drawn objects with exact mattes over photographs.

The photographs ship with installed packages. The test part contains object kinds and photographs
that training never sees.
"""

from SDMatte.samples.photos import Photograph, background, real_photographs
from SDMatte.samples.registry import OBJECT_KINDS, foreground
from SDMatte.samples.sample_set import SampleSet, make_sample_set

__all__ = [
    "OBJECT_KINDS",
    "Photograph",
    "SampleSet",
    "background",
    "foreground",
    "make_sample_set",
    "real_photographs",
]
