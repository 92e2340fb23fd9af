"""Holds recall_at_k.py, which `evaluate.load` loads; see metric_info.py."""
