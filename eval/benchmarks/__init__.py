"""Costs as ratios against a peer measured in the same run; absolute times differ between machines and days."""
