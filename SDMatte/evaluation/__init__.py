"""Evaluation of models on test sets: resumable, and in any number of processes."""

import SDMatte.compat  # noqa: F401  (before detectron2)
