"""Holds contrast_to_noise_ratio.py, which `evaluate.load` loads; see metric_info.py."""
