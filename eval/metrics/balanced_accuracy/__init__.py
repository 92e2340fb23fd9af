"""Holds balanced_accuracy.py, which `evaluate.load` loads; see metric_info.py."""
