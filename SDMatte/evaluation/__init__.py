"""Evaluation: from models and test sets to mattes and scores, resumable, in several processes."""
