"""Holds f1_at_threshold.py, which `evaluate.load` loads; see metric_info.py."""
