"""Holds pointing_game.py, which `evaluate.load` loads; see metric_info.py."""
