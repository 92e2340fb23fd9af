"""Holds expected_calibration_error.py, which `evaluate.load` loads; see metric_info.py."""
