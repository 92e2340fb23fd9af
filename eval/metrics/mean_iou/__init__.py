"""Holds mean_iou.py, which `evaluate.load` loads; see metric_info.py."""
