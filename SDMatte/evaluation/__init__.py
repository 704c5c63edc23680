"""Evaluation: from models and test sets to mattes and scores, resumable, in several processes."""

import SDMatte.compat  # noqa: F401  (before detectron2)
