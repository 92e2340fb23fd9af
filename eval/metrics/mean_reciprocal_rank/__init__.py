"""Holds mean_reciprocal_rank.py, which `evaluate.load` loads; see metric_info.py."""
