"""Configs, settings, processes, signals, devices and files."""
