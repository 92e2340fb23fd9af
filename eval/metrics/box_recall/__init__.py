"""Holds box_recall.py, which `evaluate.load` loads; see metric_info.py."""
