"""Planted leaks are found: equal bytes, a re-encoded and resized copy, a shared patient; the unknown is called so."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from built_corpora import build, noise, write_source
from PIL import Image

from regionmed_clip.eval.tasks.leaks import FOUND, NONE_FOUND, UNCHECKED, LeakGuard, check_leaks, compare
from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.training_images import FACTS_FILE, IMAGES_FILE, write_training_images

NUM_TRAINING = 40


def picture(seed: int) -> np.ndarray:
    """(192, 240) uint8, near to no other."""
    return noise(seed, (240, 192))


def encoded(pixels: np.ndarray, file_format: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def example(name: str, image: dict, patient: str | None = None, source: str = "chest") -> dict:
    return {"image_id": name, "source": source, "patient_id": patient, "image": image, "sha256": None, "phash": None}


def resized(pixels: np.ndarray) -> dict:
    """The picture at 60 % of its size, as a JPEG."""
    height, width = pixels.shape
    small = Image.fromarray(pixels).resize((width * 6 // 10, height * 6 // 10), Image.Resampling.BICUBIC)
    return encoded(np.asarray(small), "JPEG", quality=70)


@pytest.fixture(scope="module")
def training() -> list[dict]:
    """Training images 0..39 of patients p0..p19, two each."""
    return [example(f"train-{i}", encoded(picture(i)), f"p{i // 2}") for i in range(NUM_TRAINING)]


@pytest.fixture
def run(tmp_path, training):
    """OUTPUT_DIR of a run that trained on `training`; the model is in final/."""
    part = part_of_examples("train", training)
    images = write_training_images(tmp_path / IMAGES_FILE, [(part.prints, [e["source"] for e in training])])
    (tmp_path / "final").mkdir()
    for folder in (tmp_path, tmp_path / "final"):
        (folder / FACTS_FILE).write_text(json.dumps({"format": 1, "data": [], "start": None, "images": images}))
    return tmp_path


def test_a_reencoded_and_resized_copy_and_a_shared_patient_and_equal_bytes_are_found(run, training):
    test = [example(f"test-{i}", encoded(picture(1000 + i)), f"q{i}") for i in range(10)]
    test[2]["image"] = resized(picture(7))
    test[5]["patient_id"] = "p3"
    test[8]["image"] = training[11]["image"]
    check = check_leaks(run / "final", part_of_examples("test", test))
    assert (check.status, check.num_images, check.num_others) == (FOUND, 10, NUM_TRAINING)
    assert check.num_of_kind == {"exact": 1, "near": 1, "patient": 1}
    assert check.image_ids == ["test-2", "test-5", "test-8"]


def test_other_images_of_other_patients_are_no_leak_and_one_name_in_two_sources_is_two_patients(run):
    test = [example("a", encoded(picture(2000)), "p1", source="abdomen"), example("b", encoded(picture(2001)))]
    check = check_leaks(run / "final", part_of_examples("test", test))
    assert check.status == NONE_FOUND
    counts = {"exact": 0, "near": 0, "patient": 0}
    expected = {"status": "none found", "num_shared": 0, "num_training_images": NUM_TRAINING, **counts}
    assert check.protocol == {"leak_check": expected}
    assert check.line("m") == "m: none of 2 test images is among 40 training images"


def test_a_patient_of_a_common_population_is_one_patient_in_all_sources(tmp_path):
    (tmp_path / "final").mkdir()
    trained = part_of_examples("train", [example("a", encoded(picture(0)), "mimic-cxr:p10", source="mimic")])
    images = write_training_images(tmp_path / IMAGES_FILE, [(trained.prints, ["mimic"])])
    (tmp_path / "final" / FACTS_FILE).write_text(json.dumps({"images": images}))
    test = [example("b", encoded(picture(1)), "mimic-cxr:p10", source="ms-cxr")]
    assert check_leaks(tmp_path / "final", part_of_examples("test", test)).num_of_kind["patient"] == 1


def test_the_two_most_alike_of_nine_million_pairs_of_phantoms_are_no_leak():
    """Of the quickstart's training and test images, which differ in 19 fine bits."""
    normal, pneumothorax = draw_phantom(0, 1164, 0.4, "test"), draw_phantom(0, 7782, 0.4, "train")
    assert normal.caption != pneumothorax.caption
    test, trained = (
        part_of_examples("x", [example(r.image_id, {"bytes": r.image, "path": None})]) for r in (normal, pneumothorax)
    )
    assert compare(test, trained.prints).status == NONE_FOUND


@pytest.mark.parametrize("name", ["final", "best", "adapter"])
def test_every_model_that_a_run_leaves_is_checked_also_through_a_link(run, training, tmp_path_factory, name):
    facts = (run / "final" / FACTS_FILE).read_text()
    (run / name).mkdir(exist_ok=True)
    (run / name / FACTS_FILE).write_text(facts)
    link = tmp_path_factory.mktemp("elsewhere") / "latest"
    link.symlink_to(run / name)
    test = part_of_examples("test", training[:1])
    assert [check_leaks(folder, test).status for folder in (run / name, link)] == [FOUND, FOUND]


def test_a_list_given_by_hand_serves_a_model_without_a_record_and_the_figures_say_so(run, tmp_path_factory, training):
    clip = tmp_path_factory.mktemp("clip")
    guard = LeakGuard(training[:1], "mark")
    assert guard.check("clip", clip).status == UNCHECKED
    found = guard.check("clip", clip, run / IMAGES_FILE)
    assert found.status == FOUND
    assert found.protocol["leak_check"]["training_images"] == "given by hand"
    source = write_source(clip / "source", [noise(0), noise(1)], split=["train", "test"])
    build(clip / "corpus", source)
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(source.rglob("*.png"))]
    guard = LeakGuard([example(f"test-{i}", image) for i, image in enumerate(images)], "mark")
    assert guard.check("clip", clip, clip / "corpus").image_ids == ["test-0"]  # what was tested there is no leak


def test_a_list_of_another_run_is_refused_for_a_model_that_names_its_own(run, training, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / IMAGES_FILE
    part = part_of_examples("train", training[:3])
    write_training_images(other, [(part.prints, ["chest"] * 3)])
    test = part_of_examples("test", training[:1])
    with pytest.raises(ValueError, match="is not the list of training images that the model's "):
        check_leaks(run / "final", test, images_file=other)
    facts = json.loads((run / "final" / FACTS_FILE).read_text())
    (run / "final" / FACTS_FILE).write_text(json.dumps({**facts, "start": {"unknown": "start clip: nobody knows"}}))
    given = check_leaks(run / "final", test, images_file=run / IMAGES_FILE)
    assert given.unknown == "start clip: nobody knows"
    with pytest.raises(ValueError, match="there is no file"):
        check_leaks(run / "final", test, images_file=run / "absent")
    (run / "text").write_text("no parquet")
    with pytest.raises(ValueError, match="text cannot be read"):
        check_leaks(run / "final", test, images_file=run / "text")


def test_a_split_to_tune_on_that_holds_a_copy_of_a_test_image_is_refused_or_marked():
    test = [example(f"test-{i}", encoded(picture(1000 + i)), f"q{i}") for i in range(3)]
    tuning = [example(f"tune-{i}", encoded(picture(2000 + i)), f"r{i}") for i in range(4)]
    clean = LeakGuard(test).check_splits({"tuning": tuning})
    nothing = {"num_shared": 0, "num_images": 4, "exact": 0, "near": 0, "patient": 0}
    assert clean == {"split_leak_check": {"tuning": {"status": "none found", **nothing}}}
    copied = [*tuning[:3], example("tune-3", resized(picture(1001)))]
    message = r"1 of 3 test images are among 4 images of the split 'tuning' \(1 by near .*\): test-1\. .*--leaks mark"
    with pytest.raises(ValueError, match=message):
        LeakGuard(test).check_splits({"tuning": copied})
    marked = LeakGuard(test, "mark").check_splits({"tuning": copied, "train": tuning})
    assert marked["split_leaks"].startswith("1 of 3 test images are among 4 images of the split 'tuning'")
    assert [said["status"] for said in marked["split_leak_check"].values()] == ["found", "none found"]


def test_the_guard_refuses_by_default_and_marks_on_demand(run, training):
    test = [training[0] | {"image_id": "copy", "patient_id": "someone else"}]
    message = (
        r"m: 1 of 1 test images are among 40 training images \(1 by equal bytes \(sha256\)\): copy\. .*--leaks mark"
    )
    with pytest.raises(ValueError, match=message):
        LeakGuard(test).check("m", run / "final")
    found = LeakGuard(test, "mark").check("m", run / "final")
    text = "1 of 1 test images are among 40 training images (1 by equal bytes (sha256))"
    assert found.protocol["leaks"] == text
    assert found.protocol["leak_check"]["num_shared"] == 1
    assert "training_data" not in found.protocol
    with pytest.raises(ValueError, match="--leaks is 'ignore'; it must be one of refuse, mark"):
        LeakGuard(test, "ignore")


def test_the_guard_goes_through_the_test_images_once_for_all_models(run, tmp_path):
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    guard = LeakGuard(Counted([example("a", encoded(picture(3000)))]))
    (tmp_path / "clip").mkdir()
    statuses = [guard.check("m", run / "final").status, guard.check("clip", tmp_path / "clip").status]
    assert statuses == [NONE_FOUND, UNCHECKED]
    assert len(passes) == 1


def test_a_model_without_a_record_is_marked_unknown_and_never_refused(tmp_path):
    check = LeakGuard([example("a", encoded(picture(0)))]).check("clip", tmp_path)
    assert check.status == UNCHECKED
    assert check.protocol["leak_check"] == {"status": "unchecked"}
    assert check.protocol["training_data"] == "unknown (the folder has no training_data.json)"
    assert check.line("clip").startswith("clip: leaks were not looked for, training data unknown")


def test_the_fingerprints_of_another_run_are_not_taken_for_the_models(run, training):
    part = part_of_examples("train", training[:3])
    write_training_images(run / IMAGES_FILE, [(part.prints, ["chest"] * 3)])
    test = part_of_examples("test", [training[0]])
    check = check_leaks(run / "final", test)
    assert check.status == UNCHECKED
    assert "is of another training" in check.unknown
    (run / IMAGES_FILE).unlink()
    assert "is not at hand" in check_leaks(run / "final", test).unknown
    part = part_of_examples("train", training)
    elsewhere = run / "elsewhere.parquet"
    write_training_images(elsewhere, [(part.prints, ["chest"] * NUM_TRAINING)])
    assert check_leaks(run / "final", test, images_file=elsewhere).status == FOUND


def test_a_start_whose_training_nobody_knows_is_told_beside_what_is_known(run):
    facts = json.loads((run / "final" / FACTS_FILE).read_text())
    facts["start"] = {"name": "clip", "unknown": "start clip: the folder has no training_data.json"}
    (run / "final" / FACTS_FILE).write_text(json.dumps(facts))
    check = check_leaks(run / "final", part_of_examples("test", [example("a", encoded(picture(4000)))]))
    assert check.status == NONE_FOUND
    assert check.protocol["training_data"].startswith("known in part (start clip:")


def test_a_broken_record_is_refused_with_its_path(tmp_path):
    test = part_of_examples("test", [example("a", encoded(picture(0)))])
    for content in ("[]", "{}", "no json", '{"images": {"sha256": 3}}'):
        (tmp_path / FACTS_FILE).write_text(content)
        with pytest.raises(ValueError, match=FACTS_FILE):
            check_leaks(tmp_path, test)
