"""The pipeline of questions: call forms of the library's former one, regions in original pixels, bad input named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_questions import ANSWERS, tiny_question_model

from modeling_regionmed_clip.question_answering_pipeline import VisualQuestionAnsweringPipeline
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

QUESTION = "Is there a nodule?"


@pytest.fixture(scope="module")
def processor():
    image_processor = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12)
    tokenizer = train_tokenizer(["is there a nodule in the chest radiograph"], vocab_size=280, max_length=32)
    return RegionMedClipProcessor(image_processor, tokenizer)


@pytest.fixture(scope="module")
def pipe(processor):
    text = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 32}
    model = tiny_question_model(text_config={**text, "pad_token_id": processor.tokenizer.pad_token_id})
    return VisualQuestionAnsweringPipeline(
        model=model, processor=processor, task="visual-question-answering", device=-1
    )


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture of noise, `size` (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8))


def test_an_answer_is_a_label_of_the_model_with_the_sigmoid_of_its_logit(pipe, processor):
    image = picture()
    answers = pipe(image=image, question=QUESTION, top_k=3)
    scores = pipe.model(**processor(images=image, text=QUESTION)).logits[0].sigmoid()
    best = scores.argsort(descending=True)[:3]
    assert [answer["answer"] for answer in answers] == [ANSWERS[i] for i in best]
    np.testing.assert_allclose([answer["score"] for answer in answers], scores[best].detach(), atol=1e-6)


def test_no_more_answers_come_than_the_model_knows(pipe):
    assert len(pipe(image=picture(), question=QUESTION)) == len(ANSWERS)  # of five


def test_every_question_is_asked_of_every_image_in_the_order_of_the_former_pipeline(pipe):
    images, questions = [picture(0), picture(1, (40, 90))], [QUESTION, "a chest radiograph?"]
    found = pipe(image=images, question=questions)
    assert found == [pipe(image=image, question=question) for question in questions for image in images]
    assert pipe(image=images, question=QUESTION) == found[:2]
    assert pipe(image=images[1], question=questions) == [found[1], found[3]]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_dicts_lists_and_generators_of_dicts_give_the_same_with_any_batch_size(pipe, batch_size):
    asks = [
        {"image": picture(0), "question": QUESTION},
        {"image": picture(1), "question": "a nodule?", "boxes": [(3, 4, 40, 50), (10, 5, 70, 55)]},
        {"image": picture(2), "question": "in the chest?", "boxes": []},
    ]
    expected = [pipe(ask, return_attention=True) for ask in asks]
    settings = {"batch_size": batch_size, "return_attention": True}
    for found in (pipe(asks, **settings), list(pipe((ask for ask in asks), **settings))):
        for one, other in zip(found, expected, strict=True):
            assert [a["answer"] for a in one["answers"]] == [a["answer"] for a in other["answers"]]
            np.testing.assert_allclose(
                [a["score"] for a in one["answers"]], [a["score"] for a in other["answers"]], atol=1e-5
            )
            assert [r["box"] for r in one["regions"]] == [r["box"] for r in other["regions"]]


def test_an_image_of_several_questions_is_seen_once(pipe):
    rows = []
    hook = pipe.model.regionmed_clip.vision_model.register_forward_hook(
        lambda *call: rows.append(len(call[-1].last_hidden_state))
    )
    first, second = picture(0), picture(1)
    asks = [{"image": image, "question": "a nodule?"} for image in (second, first, second)]
    found = pipe(asks, batch_size=3)
    hook.remove()
    assert rows == [2]
    np.testing.assert_allclose(found[1][0]["score"], pipe(asks[1])[0]["score"], atol=1e-5)


def test_the_regions_come_back_in_original_pixels_with_attention_that_sums_to_one(pipe):
    boxes = [(3, 4, 40, 50), (10.5, 5, 70, 55)]
    answer = pipe(image=picture(), question=QUESTION, boxes=boxes, return_attention=True)
    corners = [[region["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")] for region in answer["regions"]]
    np.testing.assert_allclose(corners, boxes, atol=1e-4)
    assert sum(region["attention"] for region in answer["regions"]) == pytest.approx(1, abs=1e-5)
    assert pipe(image=picture(), question=QUESTION, return_attention=True)["regions"] == []
    assert answer["answers"] != pipe(image=picture(), question=QUESTION)


def test_proposed_regions_are_shown_like_given_ones(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model.config, "proposal_threshold", 0.0)  # an untrained head proposes all the same
    answer = pipe(image=picture(), question=QUESTION, regions="proposed", return_attention=True)
    assert len(answer["regions"]) > 1
    assert sum(region["attention"] for region in answer["regions"]) == pytest.approx(1, abs=1e-5)
    assert all(0 <= region["box"]["xmin"] <= 80 and 0 <= region["box"]["ymax"] <= 60 for region in answer["regions"])


def test_a_saved_window_is_lifted_by_saying_none(processor, pipe):
    windowed = processor.image_processor.with_overrides(window=(-600, 1500))
    own = VisualQuestionAnsweringPipeline(
        model=pipe.model, processor=RegionMedClipProcessor(windowed, processor.tokenizer), device=-1
    )
    asked = {"question": QUESTION, "boxes": [(3, 4, 40, 50)], "return_attention": True}
    with pytest.raises(ValueError, match=r"image 0 is an 8-bit picture .* say window=None in the call"):
        own(image=picture(), **asked)
    assert own(image=picture(), **asked, window=None) == pipe(image=picture(), **asked)
    values = np.random.default_rng(0).integers(-1000, 400, (60, 80)).astype(np.int16)
    assert own(image=values, **asked) == pipe(image=values, **asked, window=(-600, 1500))
    assert own(image=values, **asked) != pipe(image=values, **asked)


def test_a_model_in_bfloat16_answers(processor, pipe):
    model = type(pipe.model)(pipe.model.config).bfloat16()
    half = VisualQuestionAnsweringPipeline(model=model, processor=processor, device=-1)
    assert len(half(image=picture(), question=QUESTION, boxes=[(3, 4, 40, 50)])) == len(ANSWERS)


def test_a_dataset_that_is_known_by_its_methods_alone_gives_what_its_rows_give(pipe):
    datasets = pytest.importorskip("datasets")
    asks = [{"image": np.asarray(picture(i)).tolist(), "question": QUESTION, "boxes": [[3, 4, 40, 50]]} for i in (0, 1)]
    rows = datasets.Dataset.from_list(asks).with_transform(
        lambda batch: {**batch, "image": [np.array(one, dtype=np.uint8) for one in batch["image"]]}
    )
    singles = [pipe({**ask, "image": picture(i)}) for i, ask in enumerate(asks)]
    assert list(pipe(rows)) == singles


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "has no image"),
        ({"question": QUESTION}, "'Is there a nodule.' has no image"),
        ({"image": picture()}, "the question of an image is None"),
        ({"image": picture(), "question": "  "}, "the question of an image is '  '"),
        ({"image": [picture()]}, "what is asked is a Image"),
        ({"image": {"image": picture(), "question": "?"}, "boxes": [(0, 0, 9, 9)]}, "boxes is given beside dicts"),
        ({"image": {"image": picture()}, "question": "?"}, r"question is given beside .*'image': ..., 'question': ..."),
        ({"image": [{"image": picture(), "question": "?"}], "boxes": [[]]}, "boxes is given beside dicts"),
        ({"image": [{"image": picture()}], "question": "?"}, "question is given beside dicts"),
        ({"image": iter([{"image": picture(), "question": "?"}]), "boxes": [[]]}, "boxes is given beside dicts"),
        ({"image": iter([{"image": picture(), "question": "?"}]), "question": "?"}, "question is given beside dicts"),
        ({"image": picture(), "question": "\ud800"}, r"the text '\\ud800' is no Unicode text"),
        ({"image": picture(), "question": "?", "batch_size": -1}, "batch_size is -1"),
        ({"image": [picture()] * 2, "question": "?", "boxes": [[], [(0, 0, 90, 9)]]}, "^image 1, region 0:"),
        ({"image": {"image": picture(), "ask": "?"}}, r"has the keys \['ask', 'image'\]"),
        ({"image": picture(), "question": "a nodule " * 40}, "has .* tokens and the text tower takes 32"),
        ({"image": picture(), "question": "?", "boxes": [(0, 0, 90, 10)]}, "lies outside the image of 80 x 60"),
        ({"image": [picture()] * 2, "question": "?", "boxes": [[(0, 0, 9, 9)]]}, "1 entries for 2 images"),
        ({"image": picture(), "question": "?", "regions": "all"}, "regions is 'all'"),
        ({"image": picture(), "question": "?", "boxes": [], "regions": "proposed"}, "boxes are given and regions="),
        ({"image": picture(), "question": "?", "top_k": 0}, "top_k is 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(**call)


def test_without_a_processor_there_is_no_pipeline(pipe):
    with pytest.raises(ValueError, match="got no processor"):
        VisualQuestionAnsweringPipeline(model=pipe.model, device=-1)


def test_settings_of_the_pipeline_hold_for_every_call(processor, pipe):
    terse = VisualQuestionAnsweringPipeline(model=pipe.model, processor=processor, device=-1, top_k=1, batch_size=2)
    assert [len(answers) for answers in terse(image=picture(), question=[QUESTION, "?", "a chest?"])] == [1, 1, 1]
    assert torch.is_grad_enabled()
