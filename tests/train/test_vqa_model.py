"""The model of a fine-tuning run: what it takes from its start, which parameters move, what regions it gets."""

import pytest
import torch
from question_fixtures import VOCABULARY, question_set, save_start, tiny_processor, write_store

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.adapters import begin_stage_adapters
from regionmed_clip.train.question_set import GIVEN, PROPOSED, QuestionSet, all_batches
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.stages import build_optimizer
from regionmed_clip.train.vqa_model import (
    GROUP_OF_PART,
    AnsweringModel,
    build_vqa_model,
    open_vqa_start,
    set_trained_parameters,
    soft_labels,
    to_device,
)
from regionmed_clip.train.vqa_recipe import VqaRecipe, load_vqa_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_start(tmp_path_factory.mktemp("start") / "final", tiny_processor())


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> QuestionSet:
    return question_set(write_store(tmp_path_factory.mktemp("store")), tiny_processor())


def recipe_of(folder, *overrides: str) -> VqaRecipe:
    return load_vqa_recipe("vqa_smoke", [f"start={folder}", *overrides])


def moving(recipe: VqaRecipe, model) -> set[str]:
    """The parts, of the head the sub-parts, of which some parameter moves."""
    trained = set_trained_parameters(model, recipe.modes, has_images=recipe.has_images)
    names = (name.split(".") for name, _ in trained)
    return {".".join(name[:2]) if name[0] == "answer_head" else name[0] for name in names}


def test_the_encoder_is_the_starts_and_the_answers_are_the_vocabularys(folder):
    model = build_vqa_model(recipe_of(folder), VOCABULARY)
    started = RegionMedClipModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, started[name]) for name, tensor in model.regionmed_clip.state_dict().items())
    assert model.config.id2label == dict(enumerate(VOCABULARY.answers))
    assert model.config.answer_hidden_size == 32  # the recipe's


def test_a_random_encoder_shares_shapes_with_the_start_and_no_weight(folder):
    model = build_vqa_model(recipe_of(folder, "encoder=random", "seed=1"), VOCABULARY)
    started = RegionMedClipModel.from_pretrained(folder).state_dict()
    name = "vision_model.embeddings.patch_embedding.weight"
    assert model.regionmed_clip.state_dict()[name].shape == started[name].shape
    assert not torch.equal(model.regionmed_clip.state_dict()[name], started[name])


def test_two_models_of_one_seed_are_equal_and_of_two_seeds_differ_in_the_head_alone(folder):
    first, again, other = (build_vqa_model(recipe_of(folder, f"seed={seed}"), VOCABULARY) for seed in (1, 1, 2))
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differing = {name.partition(".")[0] for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert differing == {"answer_head"}


def test_what_moves_follows_the_modes_and_what_the_answers_depend_on(folder):
    model = build_vqa_model(recipe_of(folder), VOCABULARY)
    head = {f"answer_head.{name}" for name, _ in model.answer_head.named_children()}
    towers = {"vision_model", "visual_projection", "text_model", "text_projection", "roi_processor"}
    assert moving(recipe_of(folder), model) == towers | head
    frozen = recipe_of(folder, "modes={vision: frozen, text: frozen, roi: frozen}")
    assert moving(frozen, model) == head
    blind = moving(recipe_of(folder, "has_images=false"), model)
    assert {"vision_model", "roi_processor", "answer_head.patch_projection"}.isdisjoint(blind)
    assert {"text_model", "answer_head.classifier"} <= blind


def test_every_moving_parameter_gets_a_gradient_in_a_batch_of_all_modes(folder, questions):
    recipe = recipe_of(folder)
    model = build_vqa_model(recipe, VOCABULARY)
    trained = set_trained_parameters(model, recipe.modes, has_images=True)
    ((_, batch),) = all_batches(questions, GIVEN, max_questions=100)
    tensors = to_device(batch, torch.device("cpu"))
    AnsweringModel(model, has_images=True).train()(tensors, soft_labels(tensors["answer"], 5)).loss.backward()
    missing = {name for name, parameter in trained if parameter.grad is None or not parameter.grad.any()}
    unreached = {"text_model.embeddings.position_embeddings.weight"} & missing
    assert missing == unreached


def test_by_lora_the_adapters_and_what_lies_beside_the_tower_move(folder):
    recipe = recipe_of(folder, "modes={vision: lora, text: frozen}")
    model = build_vqa_model(recipe, VOCABULARY)
    begin_stage_adapters(model.regionmed_clip, StagePlan(0, recipe.stage(), 0, 0), recipe.seed)
    trained = set_trained_parameters(model, recipe.modes, has_images=True)
    of_vision = [name for name, _ in trained if name.startswith("vision_model")]
    assert of_vision
    assert all(".lora_" in name for name in of_vision)
    assert not any(name.startswith("text_model") for name, _ in trained)
    optimizer = build_optimizer(trained, recipe.stage(), recipe.optimizer, GROUP_OF_PART)
    assert {group["name"] for group in optimizer.param_groups} == {"vision", "roi", "head"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_proposed_questions_get_the_models_own_regions_and_others_keep_theirs(folder, questions):
    model = build_vqa_model(recipe_of(folder), VOCABULARY)
    model.config.proposal_threshold = 0.0  # everything is proposed: sixteen regions, or as many as there are patches
    answering = AnsweringModel(model, has_images=True).eval()
    ((_, given),) = all_batches(questions, GIVEN, max_questions=100)
    ((_, proposed),) = all_batches(questions, PROPOSED, max_questions=100)
    tensors = to_device(given, torch.device("cpu"))
    tensors["is_proposed"] = torch.tensor([True, False, False, True, False, False])
    num_seen = []
    seeing = model.regionmed_clip.vision_model.register_forward_hook(
        lambda *call: num_seen.append(len(call[-1].last_hidden_state))
    )
    with torch.no_grad():
        mixed = answering(tensors, has_proposed=True)
        seeing.remove()
        as_given = answering(to_device(given, torch.device("cpu")))
        whole = {name: proposed[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_index")}
        as_proposed = model(**whole, regions="proposed")
    expected = torch.where(tensors["is_proposed"][:, None], as_proposed.logits, as_given.logits)
    torch.testing.assert_close(mixed.logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(as_given.logits, as_proposed.logits, atol=1e-4)
    assert num_seen == [len(tensors["pixel_values"])]  # each image once, though it is proposed from and asked about


def test_without_images_the_answers_depend_on_the_question_alone(folder, questions):
    answering = AnsweringModel(build_vqa_model(recipe_of(folder), VOCABULARY), has_images=False).eval()
    ((_, batch),) = all_batches(questions, GIVEN, max_questions=100)
    logits = answering(to_device(batch, torch.device("cpu"))).logits
    assert torch.equal(logits[0], logits[1])  # the same question of two regions
    assert not torch.equal(logits[0], logits[2])


def test_an_answer_outside_the_vocabulary_has_a_row_of_zeros():
    assert soft_labels(torch.tensor([1, -1]), 3).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_start_that_crops_images_is_refused(folder, tmp_path):
    processor = RegionMedClipProcessor.from_pretrained(folder)
    RegionMedClipModel.from_pretrained(folder).save_pretrained(tmp_path)
    processor.image_processor.geometry = "source"
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"shows images by geometry 'source', which may crop away what is asked for"):
        open_vqa_start(recipe_of(tmp_path))


def test_a_start_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"start='.*absent' is not a folder"):
        open_vqa_start(recipe_of(tmp_path / "absent"))
