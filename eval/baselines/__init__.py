"""Baselines: checkpoints of others and training-free readings of any model, in the same harness as our own."""
