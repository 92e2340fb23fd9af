"""Holds macro_auroc.py, which `evaluate.load` loads; see metric_info.py."""
