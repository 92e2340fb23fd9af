"""Progressive training of RegionMed-CLIP."""
