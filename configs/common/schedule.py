"""Learning-rate schedule as published: linear warm-up, then exponential decay to 0.005."""

from detectron2.config import LazyCall as L

from SDMatte.engine.schedule import exponential_schedule

# The trainer adds max_iter, which it derives from the data.
lr_multiplier = L(exponential_schedule)(decay=5e-3, warmup_iter=200, warmup_factor=1e-3)
