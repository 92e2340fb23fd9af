"""The actions of the page: what changes, and that a refusal changes nothing but the note."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from dicom_fixtures import write_dicom
from PIL import Image


@pytest.fixture(scope="module")
def answers(page, demo, space, region_model):
    """The actions for the tiny model with its index and examples."""
    index = demo.region_model.RegionIndex(space)
    return page.answers.Answers(region_model, index, demo.settings.read_examples(space))


@pytest.fixture
def visit(answers):
    """The first example, open."""
    return answers.open_example(0)[0]


def test_an_example_opens_with_its_drawn_boxes_already_read(answers):
    visit, canvas, strip, texts, cards, text, query, heat, cases, note = answers.open_example(1)
    example = answers.examples[1]
    assert [tuple(box) for box in canvas["boxes"]] == [tuple(region["box"]) for region in example.regions]
    assert len(canvas["labels"]) == len(example.regions) >= 2
    assert (strip["chosen"], visit.example, heat, cases, note) == (1, 1, "", "", "")
    assert texts.splitlines() == list(example.texts)
    assert text == query == example.regions[0]["description"]
    assert cards.count("card-region") == len(example.regions)
    assert all(f"Drawn here: {region['description']}" in cards for region in example.regions)


def test_the_labels_that_go_back_carry_the_revision_of_the_boxes(answers, visit):
    payload = {"boxes": [[5, 5, 40, 40]], "selected": 0, "revision": 17}
    update, cards, note = answers.read(payload, visit, "a\nb")
    assert set(update) == {"__type__", "answer"}  # no value: the visitor may have drawn on
    assert (update["answer"]["revision"], len(update["answer"]["labels"]), note) == (17, 1, "")
    assert cards.count("card-region") == 1


def test_a_refusal_leaves_the_page_and_says_why(page, answers, visit):
    *unchanged, note = page.answers.readable(3)(answers.read)({"boxes": "?"}, visit, "a\nb")
    assert 'role="alert"' in note
    assert "reload" in note
    assert all(update == page.answers.gr.skip() for update in unchanged)
    assert len(unchanged) == 2


@pytest.mark.parametrize("text", ["\ud800", "a [SEP] \udfff"])
def test_half_a_surrogate_pair_in_a_text_is_refused_in_the_note(page, answers, visit, text):
    payload = {"boxes": [[5, 5, 40, 40]], "selected": 0}
    for action, inputs in ((answers.read, (payload, visit, f"{text}\nb")), (answers.find, (visit, text))):
        *_, note = page.answers.readable(3)(action)(*inputs)
        assert 'role="alert"' in note
        assert "is no Unicode text" in note
        note.encode("utf-8")
    *_, note = page.answers.readable(2)(answers.search_text)(text)
    assert "is no Unicode text" in note


@pytest.fixture
def number_field(page, answers):
    """The field of the frame or slice, as the page has it."""

    async def build():  # where no loop is running, gradio leaves open those that it makes
        with page.answers.gr.Blocks():
            return page.app.Page(answers).number

    return asyncio.run(build())


def test_a_forged_number_of_a_frame_is_refused_in_the_note(page, answers, visit, number_field, tmp_path):
    Image.new("L", (6, 5)).save(tmp_path / "one.png")
    for number in (float("inf"), float("nan"), 10**400):
        inputs = (visit, str(tmp_path / "one.png"), "as the file says", number_field.preprocess(number), "a\nb")
        *_, note = page.answers.readable(7)(answers.open_upload)(*inputs)
        assert "it must be a whole number from 0" in note


def test_an_error_of_our_own_is_not_swallowed(page):
    def broken():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        page.answers.readable(2)(broken)()


def test_an_upload_opens_without_boxes_and_forgets_the_example(answers, visit, tmp_path):
    Image.new("CMYK", (50, 30)).save(tmp_path / "ink.jpg")
    opened = answers.open_upload(visit, str(tmp_path / "ink.jpg"), "as the file says", None, "a\nb")
    visit, canvas, strip, cards, *_, note = opened
    assert (canvas["boxes"], canvas["width"], canvas["height"]) == ([], 50, 30)
    assert (strip["chosen"], visit.example) == (None, None)
    assert "Draw a box" in cards
    assert "ink.jpg: 50 x 30 pixels." in note


def test_a_file_of_several_frames_waits_for_its_number(answers, visit, tmp_path):
    frames = [Image.new("L", (6, 5), level) for level in (10, 20)]
    frames[0].save(tmp_path / "two.tiff", save_all=True, append_images=frames[1:])
    waiting, *_, note = answers.open_upload(visit, str(tmp_path / "two.tiff"), "as the file says", None, "a\nb")
    assert (waiting.picture, waiting.example) == (visit.picture, 0)  # the example stays open
    assert "Frame or slice&quot; under Options, 0 to 1" in note
    opened = answers.reopen(waiting, "as the file says", 1, "a\nb")[0]
    assert (opened.picture.size, opened.picture.getpixel((0, 0)), opened.example) == ((6, 5), (20, 20, 20), None)


def test_windows_are_chosen_by_name_and_the_files_own_holds_at_first(answers):
    assert answers.windows[:2] == ("as the file says", "lung")


def test_a_models_own_window_is_chosen_at_first_and_reading_goes_on_with_what_is_shown(
    answers, visit, tmp_path, monkeypatch
):
    own = answers.model._processor
    monkeypatch.setattr(own, "image_processor", own.image_processor.with_overrides(window="lung"))
    monkeypatch.setattr(answers.model, "window", "lung")
    values = np.linspace(-1400, 400, 30 * 40).reshape(30, 40).astype(np.int16)
    ct = write_dicom(tmp_path / "ct.dcm", values, Modality="CT", WindowCenter=50, WindowWidth=350)
    chosen = answers.windows[0]
    assert chosen == "the model's own"
    opened = answers.open_upload(visit, str(ct), chosen, None, "a\nb")
    assert "40 x 30 pixels through the window lung." in opened[-1]
    lung = opened[0].picture
    assert answers.reopen(opened[0], "as the file says", None, "a\nb")[0].picture.tobytes() != lung.tobytes()
    cards = answers.read({"boxes": [[5, 5, 30, 20]], "selected": 0}, opened[0], "a\nb")[1]
    assert cards.count("card-region") == 1
    assert "Cosine of each patch" in answers.find(opened[0], "a nodule")[0]


def test_options_without_an_upload_change_nothing(page, answers, visit):
    *unchanged, note = answers.reopen(visit, "lung", None, "a\nb")
    assert all(update == page.answers.gr.skip() for update in unchanged)
    assert "files that you upload" in note


def test_suggesting_nothing_is_an_answer_with_a_way_out(page, answers, visit):
    *unchanged, note = answers.suggest(visit, "a\nb", 1.0)
    assert all(update == page.answers.gr.skip() for update in unchanged)
    assert 'role="status"' in note
    assert "suggests no box here: none scores 1.00" in note


def test_suggested_boxes_come_read(answers, visit):
    canvas, cards, note = answers.suggest(visit, "a\nb", 0.0)
    assert len(canvas["boxes"]) == len(canvas["labels"]) == cards.count("card-region") > 0
    assert canvas["from_server"]
    assert "the best first" in note


def test_the_chosen_box_is_searched_and_none_is_refused(answers, visit):
    boxes = [list(region["box"]) for region in answers.examples[0].regions]
    cases, note = answers.search_box({"boxes": boxes, "selected": 1}, visit)
    assert cases.count("<figure") == 8
    assert "box 2" in cases
    assert note == ""
    for selected in (None, 7, "1"):
        with pytest.raises(ValueError, match="Choose a box first"):
            answers.search_box({"boxes": boxes, "selected": selected}, visit)


def test_a_text_is_found_and_searched(answers, visit):
    assert "Cosine of each patch with “a nodule”" in answers.find(visit, " a  nodule ")[0]
    assert answers.search_text("a nodule")[0].count("<figure") == 8
    with pytest.raises(ValueError, match="Write a text first"):
        answers.find(visit, "  ")


def test_without_a_picture_every_action_asks_for_one(page, answers):
    nothing = page.answers.Visit()
    for action in (lambda: answers.find(nothing, "a"), lambda: answers.suggest(nothing, "a\nb", 0.4)):
        with pytest.raises(ValueError, match="Open a picture first"):
            action()


def test_without_a_model_the_page_says_what_to_set(page, demo, monkeypatch, tmp_path):
    monkeypatch.delenv("REGIONMED_MODEL", raising=False)
    with pytest.raises(ValueError, match="Set REGIONMED_MODEL"):
        demo.settings.model_source(tmp_path)
    monkeypatch.setenv("REGIONMED_MODEL", str(tmp_path / "absent"))
    monkeypatch.setattr(page.app, "broken_app", lambda reason: reason)
    assert "absent is neither a folder here nor ORG/NAME on the Hub" in page.app.load_app()


def test_the_environment_goes_before_the_space_and_the_space_before_the_folder(demo, monkeypatch, tmp_path):
    monkeypatch.delenv("REGIONMED_MODEL", raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert demo.settings.model_source(tmp_path) == (str(tmp_path / "model"), None)
    (tmp_path / "space.json").write_text('{"model_id": "org/name", "revision": "abc"}')
    assert demo.settings.model_source(tmp_path) == ("org/name", "abc")
    monkeypatch.setenv("REGIONMED_MODEL", "other/name")
    assert demo.settings.model_source(tmp_path) == ("other/name", None)
