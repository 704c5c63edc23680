"""The learning rate's factor: a linear warm-up, then exponential decay to 0.005 of it."""

from detectron2.config import LazyCall as L

from SDMatte.engine.schedule import exponential_schedule

# max_iter is set by the trainer, which derives it from the data.
lr_multiplier = L(exponential_schedule)(decay=5e-3, warmup_iter=200, warmup_factor=1e-3)
