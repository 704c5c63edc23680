"""Optimizations that only make CPUs faster; docs/architecture.md explains them."""
