"""One optimiser step of a tiny model over twelve samples in which little is even, whatever shares them.

Of the samples 0-2 have no caption, 9-11 no region; texts and hard negatives repeat across them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from tiny_models import tiny_config

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.corpus.image_texts import NegativeText
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.arguments import Recipe
from regionmed_clip.train.collator import Collator
from regionmed_clip.train.distillation import Distiller, freeze_teacher
from regionmed_clip.train.frame_store import StoredSample
from regionmed_clip.train.gradient_cache import MicroBatchCollator
from regionmed_clip.train.prepared import PreparedStage
from regionmed_clip.train.recipe_parts import Distillation, Stage
from regionmed_clip.train.sample_order import rank_positions
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.stages import build_optimizer, set_trained_parameters
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.training_step import StepOutcome, TrainingStep

NUM_SAMPLES = 12
FRAME_PX = 48
NUM_NEGATIVES = 2
CAPTIONS = ["one nodule", "an effusion", "nothing to see", "a nodule and an effusion"]
REGION_TEXTS = ["nodule", "nodule in the left lung", "effusion", "small effusion", "mass on the right"]
FACTS = np.array([[1, 9, 0, 0], [1, 9, 0, 5], [2, 9, 0, 0], [2, 9, 6, 0], [3, 9, 0, 7]], dtype=np.int64)  # of each text
REGIONS_OF_SAMPLE = [[0, 1], [2], [3, 0, 4], [4], [1], [], [0, 2, 3, 4], [2, 1], [3], [], [], []]
ALL_TERMS = {
    "image_text": 1.0,
    "region_text": 0.8,
    "image_region_text": 0.5,
    "fused_image_text": 0.7,
    "hard_negatives": 0.6,
    "proposals": 0.4,
    "region_distillation": 0.9,
}


def tiny_samples() -> list[StoredSample]:
    """The twelve samples; every region's hard negatives are the two texts after its own, of which others speak."""
    generator = np.random.default_rng(0)
    made = []
    for number, regions in enumerate(REGIONS_OF_SAMPLE):
        corners = generator.uniform(0.0, 0.5, (len(regions), 2))
        negatives = [[(text + 1) % 5, (text + 2) % 5][: 1 + number % 2] for text in regions]
        made.append(
            StoredSample(
                sample_id=f"sample-{number}",
                frame=generator.integers(0, 256, (3, FRAME_PX, FRAME_PX), dtype=np.uint8),
                caption=CAPTIONS[number % 4],
                caption_key=-1 if number < 3 else 100 + number % 4,
                boxes=np.concatenate([corners, corners + 0.4], axis=1).astype(np.float32),
                region_texts=tuple(REGION_TEXTS[text] for text in regions),
                region_keys=tuple(200 + text for text in regions),
                region_findings=tuple(REGION_TEXTS[text] for text in regions),
                source="test",
                region_facts=np.pad(FACTS[regions].reshape(-1, 4), ((0, 0), (0, 4))),
                drawn_negatives=tuple(
                    tuple(NegativeText(REGION_TEXTS[text], 200 + text, "finding") for text in rows)
                    for rows in negatives
                ),
            )
        )
    return made


def tiny_stage(**changes) -> Stage:
    fields = {"loss_weights": ALL_TERMS, "num_negatives": NUM_NEGATIVES, "max_grad_norm": 1e9, "weight_decay": 0.0}
    fields |= {
        "name": "all",
        "steps": 1,
        "global_batch_size": NUM_SAMPLES,
        "image_size": FRAME_PX,
        "learning_rate": 0.1,
    }
    return Stage(**{**fields, **changes})


def tiny_stage_model(dropout: float, has_biases: bool) -> RegionMedClipModel:
    torch.manual_seed(1)
    text = tiny_config().text_config.to_dict()
    text |= {"vocab_size": 320, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return RegionMedClipModel(tiny_config(text_config=text, logit_bias_init_value=-3.0 if has_biases else None))


def tiny_collator() -> Collator:
    images = RegionMedClipImageProcessor(size={"height": FRAME_PX, "width": FRAME_PX}, patch_size=12)
    tokenizer = train_tokenizer([*CAPTIONS, *REGION_TEXTS], 300, 16)
    return Collator(RegionMedClipProcessor(images, tokenizer), NUM_NEGATIVES)


def share_of(accelerator: Accelerator, micro_batch_size: int | None) -> list[dict]:
    """The micro-batches of this process."""
    samples = tiny_samples()
    mine = rank_positions(0, NUM_SAMPLES, accelerator.process_index, accelerator.num_processes)
    chosen = [(samples[place], np.arange(len(samples[place].boxes))) for place in mine]
    return MicroBatchCollator(tiny_collator(), micro_batch_size)(chosen)


def take_step(
    accelerator: Accelerator,
    micro_batch_size: int | None = None,
    *,
    stage: Stage | None = None,
    dropout: float = 0.0,
    batches: Sequence[dict] | None = None,
) -> tuple[StepOutcome, PreparedStage]:
    """The outcome of step 3, and the stage's model after it, whose parameters still have their gradients."""
    stage = stage or tiny_stage()
    model = tiny_stage_model(dropout, "sigmoid" in stage.loss_kinds.values())
    recipe = Recipe(seed=5, distillation=Distillation(regions=2, min_side=0.4, max_side=0.8))
    has_teacher = "region_distillation" in stage.loss_weights
    distiller = Distiller(freeze_teacher(model), stage, recipe, accelerator) if has_teacher else None
    set_trained_parameters(model, stage)
    prepared = PreparedStage(model, accelerator)
    prepared.model.train()
    optimizer = build_optimizer(prepared.trained_parameters(), stage, recipe.optimizer)
    runner = TrainingStep(prepared, StagePlan(0, stage, 0, 0), optimizer, accelerator, recipe.seed, distiller)
    batches = share_of(accelerator, micro_batch_size) if batches is None else batches
    return runner.run(batches, step=3), prepared


def gradients_of(prepared: PreparedStage) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in prepared.trained_parameters() if value.grad is not None}


def counts_and_losses(outcome: StepOutcome) -> dict[str, list[float]]:
    """By term: loss, positives, negatives, masked pairs."""
    return {name: [float(value) for value in dataclasses.astuple(term)] for name, term in outcome.terms.items()}


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all gradients together, in units of the norm of the expected ones."""
    assert found.keys() == expected.keys()
    differences = torch.stack([(found[name] - expected[name]).double().norm() for name in expected])
    return float(differences.norm() / torch.stack([tensor.double().norm() for tensor in expected.values()]).norm())
