"""Holds brier_score.py, which `evaluate.load` loads; see metric_info.py."""
