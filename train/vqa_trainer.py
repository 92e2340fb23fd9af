"""One run of fine-tuning: steps over drawn questions, early stopping on the validation split, the best weights kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering

from .adapter_files import merge_adapters
from .adapters import begin_stage_adapters, settle_adapters
from .checkpoint import (
    BEST_FOLDER,
    Best,
    CheckpointTensors,
    RunState,
    best_state,
    find_checkpoint,
    load_model_weights,
    load_optimizer,
    save_best,
    save_checkpoint,
)
from .gather import any_process
from .interruption import Interrupted, Interruption
from .question_set import DrawnQuestions, DrawSettings, QuestionBatch, QuestionSet
from .sample_order import rank_positions, step_seed
from .stage_model import eager_attention_on_cpu
from .stage_plan import StagePlan
from .stages import build_optimizer, set_learning_rates
from .step_rows import StepClock, peak_memory
from .vqa_model import GROUP_OF_PART, AnsweringModel, set_trained_parameters, soft_labels, to_device
from .vqa_recipe import VqaRecipe
from .vqa_validation import METRIC, QuestionValidator
from .watching import RunLogs
from .whole_files import clean_up

VALIDATION_SPLIT = "validation"


@dataclass(frozen=True)
class StepNumbers:
    """What one step gives to the log, of all processes together; `accuracy`: the share of questions answered right."""

    loss: float
    accuracy: float
    num_questions: int
    grad_norm: float


class VqaTrainer:
    """Trains `model` in place by a recipe without epochs; its log and checkpoints lie in `output_dir`.

    Args:
        identity: of the run, plain values; see `find_checkpoint`.
        validator: on the main process.
    """

    def __init__(
        self,
        recipe: VqaRecipe,
        model: RegionMedClipForVisualQuestionAnswering,
        questions: QuestionSet,
        output_dir: Path,
        accelerator: Accelerator,
        identity: Mapping[str, Any],
        interruption: Interruption | None = None,
        validator: QuestionValidator | None = None,
    ):
        self.recipe = recipe
        self.model = model.to(accelerator.device)
        self.plan = StagePlan(0, recipe.stage(), first_step=0, first_position=0)
        settings = (recipe.seed, recipe.questions_per_image, recipe.regions.shares(), recipe.max_regions)
        self.drawn = DrawnQuestions(questions, DrawSettings(*settings, recipe.box_noise))
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.checkpoints = output_dir / "checkpoints"
        self.identity = dict(identity)
        self.interruption = interruption or Interruption()
        self.validator = validator

    def train(self, resume: bool) -> Best:
        """The figure of the weights that the model then has: those of the best validation, adapters merged.

        Raises:
            Interrupted: if the run was asked to end; the checkpoint of its last step is written.
        """
        encoder = self.model.regionmed_clip
        if self.accelerator.is_main_process and self.checkpoints.is_dir():
            clean_up(self.checkpoints)
        found = find_checkpoint(self.checkpoints, self.identity) if resume else None
        step = 0 if found is None else found[1].step
        if found is None:
            begin_stage_adapters(encoder, self.plan, self.recipe.seed)
        else:
            settle_adapters(encoder, [self.plan], step)
            load_model_weights(found[0], self.model)
        with self.interruption.deferred(), eager_attention_on_cpu(self.model, beside_towers=True):
            self._train_steps(step, None if found is None else found[0])
        state = best_state(self.checkpoints)
        assert state is not None, "every run ends with a validation"
        assert state.best is not None
        load_model_weights(self.checkpoints / BEST_FOLDER, self.model)
        merge_adapters(encoder)
        return state.best

    def _train_steps(self, step: int, checkpoint: Path | None) -> None:
        recipe, modes = self.recipe, self.recipe.modes
        trained = set_trained_parameters(self.model, modes, has_images=recipe.has_images)
        answering = AnsweringModel(self.model, has_images=recipe.has_images)
        wrapped = self.accelerator.prepare_model(answering)
        optimizer = build_optimizer(trained, self.plan.stage, recipe.optimizer, GROUP_OF_PART)
        if checkpoint is not None:
            optimizer.load_state_dict(load_optimizer(checkpoint))
        watcher = VqaWatcher(recipe, self.plan, self.accelerator, self.output_dir, step)
        last_step = step if self._is_over(step) else self.plan.last_step
        with watcher:
            answering.train()
            for batch in watcher.clock.timed(self._batches(step, last_step)):
                set_learning_rates(optimizer, self.plan.stage, step)
                numbers = self._step(wrapped, trained, optimizer, batch, step)
                step += 1
                watcher.record(step, numbers, optimizer)
                if step % recipe.validation.every_steps == 0 or step == self.plan.last_step:
                    self._validate(answering, optimizer, step, watcher)
                    last_step = step if self._is_over(step) else last_step
                is_interrupted = any_process(self.interruption.is_asked, self.accelerator.device)
                if step % recipe.checkpoint_every_steps == 0 or step == last_step or is_interrupted:
                    watcher.flush()
                    self._save(step, optimizer)
                if is_interrupted:
                    raise Interrupted(self.interruption.signal_name, step, self.interruption.command)
                if step == last_step:
                    break
        self.accelerator.free_memory()

    def _batches(self, first_step: int, last_step: int) -> Iterator[QuestionBatch]:
        size, rank = self.recipe.global_batch_size, self.accelerator.process_index
        for step in range(first_step, last_step):
            positions = rank_positions(self.plan.position(step), size, rank, self.accelerator.num_processes)
            yield self.drawn.batch(positions)

    def _step(
        self,
        wrapped: torch.nn.Module,
        trained: Iterable[tuple[str, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        batch: QuestionBatch,
        step: int,
    ) -> StepNumbers:
        """Moves the parameters by the mean loss over the questions of all processes."""
        accelerator = self.accelerator
        torch.manual_seed(step_seed(self.recipe.seed, step, accelerator.process_index))
        optimizer.zero_grad(set_to_none=True)
        tensors = to_device(batch, accelerator.device)
        labels = soft_labels(tensors["answer"], self.model.config.num_labels)
        output = wrapped(tensors, labels, has_proposed=bool(batch["is_proposed"].any()))
        first = self.plan.position(step)
        num_questions = self.drawn.num_questions(range(first, first + self.recipe.global_batch_size))
        share = len(labels) / num_questions  # of the questions of all processes; their gradients are averaged
        accelerator.backward(output.loss * share * accelerator.num_processes)
        grad_norm = torch.nn.utils.clip_grad_norm_([item for _, item in trained], self.recipe.optimizer.max_grad_norm)
        num_right = (output.logits.detach().argmax(dim=-1) == tensors["answer"]).sum() / num_questions
        both = accelerator.reduce(torch.stack([output.loss.detach().float() * share, num_right]), reduction="sum")
        loss, accuracy = both.tolist()
        numbers = StepNumbers(loss, accuracy, num_questions, float(grad_norm))
        self._refuse_non_finite(numbers, batch, step)
        optimizer.step()
        return numbers

    def _refuse_non_finite(self, numbers: StepNumbers, batch: QuestionBatch, step: int) -> None:
        """Raises on every process alike: loss and norm are those of the global batch."""
        for name in ("loss", "grad_norm"):
            value = getattr(numbers, name)
            if not math.isfinite(value):
                samples = ", ".join(gather_object(batch["sample_id"]))
                raise ValueError(
                    f"step {step + 1}: {name} is {value}; it must be finite. Images of the global batch: {samples}. "
                    "Lower the learning rate or look at these images; the last checkpoint holds what was before."
                )

    def _validate(
        self, answering: AnsweringModel, optimizer: torch.optim.Optimizer, step: int, watcher: VqaWatcher
    ) -> None:
        if self.validator is not None:
            rows = self.validator.measure(answering, step)
            watcher.record_validation(step, rows)
            figure = next(row["value"] for row in rows if row["metric"] == METRIC)
            state = self._best()
            if state is None or state.best is None or figure > state.best.value:
                found = Best(METRIC, figure, VALIDATION_SPLIT)
                save_best(self.checkpoints, self._tensors(optimizer), self._state(step, found))
        self.accelerator.wait_for_everyone()

    def _best(self) -> RunState | None:
        """The state of the best checkpoint of this very run."""
        state = best_state(self.checkpoints)
        return state if state is not None and state.identity == self.identity else None

    def _is_over(self, step: int) -> bool:
        """Whether so many validations in a row, the last one right after `step`, brought no new best."""
        settings, state = self.recipe.validation, self._best()
        return state is not None and step - state.step >= settings.patience * settings.every_steps

    def _tensors(self, optimizer: torch.optim.Optimizer) -> CheckpointTensors:
        return CheckpointTensors(self.model.state_dict(), optimizer.state_dict())

    def _state(self, step: int, best: Best | None = None) -> RunState:
        position = self.plan.position(step)
        epoch = position // len(self.drawn.questions)
        return RunState(step, self.plan.stage.name, epoch, position, self.recipe.seed, self.identity, best)

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if self.accelerator.is_main_process:
            tensors = self._tensors(optimizer)
            save_checkpoint(self.checkpoints, tensors, self._state(step), self.recipe.keep_checkpoints)


class VqaWatcher(RunLogs):
    """Writes and shows how a fine-tuning goes."""

    def __init__(self, recipe: VqaRecipe, plan: StagePlan, accelerator: Accelerator, output_dir: Path, first_step: int):
        super().__init__(recipe, [plan], accelerator, output_dir, first_step)
        self.clock = StepClock()
        self._stage = plan.stage

    def record(self, step: int, numbers: StepNumbers, optimizer: torch.optim.Optimizer) -> None:
        """Writes and shows `step`, which has just been taken."""
        if not self._accelerator.is_main_process:
            return
        elapsed_s, wait_share = self.clock.read()
        samples_per_s = (self._stage.global_batch_size or 0) / elapsed_s
        row: dict[str, Any] = {"step": step, "stage": self._stage.name, "loss": numbers.loss}
        row |= {"train_accuracy": numbers.accuracy, "num_questions": numbers.num_questions}
        row |= {f"lr_{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
        row |= {"grad_norm": numbers.grad_norm, "samples_per_s": round(samples_per_s, 2)}
        row |= {"data_wait_share": round(wait_share, 4), **peak_memory(self._accelerator.device)}
        self._record_row(row, samples_per_s, wait_share)
