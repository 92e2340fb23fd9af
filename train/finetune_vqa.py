"""Entry: `accelerate launch train/finetune_vqa.py` teaches an encoder to answer (train/vqa_recipe.py)."""

import sys

from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.train.failures import failing_together
from regionmed_clip.train.interruption import Interruption
from regionmed_clip.train.launch import leave
from regionmed_clip.train.vqa_recipe import parse_vqa_command_line
from regionmed_clip.train.vqa_training import VqaRun, finetune


def write_outputs(run: VqaRun) -> None:
    """Fills OUTPUT_DIR."""
    for trained in (run.main, *run.controls.values()):
        stage_flat_folder(trained.model, run.processor, trained.folder / "final", results=[], facts=run.facts(trained))


if __name__ == "__main__":
    with failing_together():
        trained = finetune(parse_vqa_command_line(sys.argv[1:]), Interruption().install())
        if trained.accelerator.is_main_process:
            write_outputs(trained)
        leave(trained.accelerator)
