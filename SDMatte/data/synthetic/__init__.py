"""The embedded sample set: drawn pictures with exact mattes in the real sets' own layouts.

See issue "embedded sample set": hair, fur, lattices, soft edges, glass, smoke, text and leaves over
photographs that installed packages bring along; the test part has kinds of foreground and
photographs that training never shows.
"""

from SDMatte.data.synthetic.photos import Photograph, background, real_photographs
from SDMatte.data.synthetic.registry import foreground, kinds
from SDMatte.data.synthetic.sample_set import SampleSet, make_sample_set

__all__ = [
    "Photograph",
    "SampleSet",
    "background",
    "foreground",
    "kinds",
    "make_sample_set",
    "real_photographs",
]
