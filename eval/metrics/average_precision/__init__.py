"""Holds average_precision.py, which `evaluate.load` loads; see metric_info.py."""
