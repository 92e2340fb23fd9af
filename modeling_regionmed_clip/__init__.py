"""RegionMed-CLIP, the model: configuration, towers with the ROI processor, and losses."""

from .configuration_regionmed_clip import RegionMedClipConfig
from .modeling_regionmed_clip import RegionMedClipModel, RegionMedClipOutput

__all__ = ["RegionMedClipConfig", "RegionMedClipModel", "RegionMedClipOutput"]
