"""RegionMed-CLIP, the model: configuration, towers with the ROI processor, answers to questions, and losses."""

from .configuration_regionmed_clip import RegionMedClipConfig
from .modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering, RegionMedClipModel, RegionMedClipOutput

__all__ = [
    "RegionMedClipConfig",
    "RegionMedClipForVisualQuestionAnswering",
    "RegionMedClipModel",
    "RegionMedClipOutput",
]
