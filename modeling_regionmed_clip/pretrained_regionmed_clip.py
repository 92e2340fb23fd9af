"""What all models of RegionMed-CLIP share: how the library loads them and how new weights are drawn."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .answer_head import AnswerClassifier
from .configuration_regionmed_clip import RegionMedClipConfig
from .region_proposals import PRIOR_SCORE, ScoreLinear
from .roi_processor import RegionFusion
from .shared_space import Temperatures


class RegionMedClipPreTrainedModel(PreTrainedModel):
    config_class = RegionMedClipConfig
    base_model_prefix = "regionmed_clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["PrompterBlock", "RegionFusion", "CoAttentionBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: `_init_weights` writes through `transformers.initialization` alone and so never over loaded weights.

        For code it does not trust in that, the library skips modules without parameters of their own; a tower's
        attention and MLP layers, when missing from a checkpoint, would keep the spread of any other linear layer.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if isinstance(module, ScoreLinear):
                init.constant_(module.bias, math.log(PRIOR_SCORE / (1 - PRIOR_SCORE)))
            elif isinstance(module, AnswerClassifier):
                init.constant_(module.bias, -math.log(max(1, module.out_features - 1)))  # each answer as likely
        elif isinstance(module, Temperatures):
            module.init_weights()
        elif isinstance(module, RegionFusion):
            init.zeros_(module.alpha)
