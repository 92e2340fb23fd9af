"""Processing of RegionMed-CLIP: image and text processors (shipped flat to the Hub) and the MedRegion corpus."""
