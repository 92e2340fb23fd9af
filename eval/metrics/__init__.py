"""Metrics: pure functions over numpy arrays; they know nothing of models, files or data sets."""
