"""The harness over a real, tiny model: streaming, batching, readings, and what the runs hand back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from regionmed_clip.eval.tasks import embedding, region_readings, runner
from regionmed_clip.eval.tasks.embedded_split import SplitRows, clusters_of
from regionmed_clip.eval.tasks.embedding import embed_examples, embed_readings, embed_texts
from regionmed_clip.eval.tasks.embedding_cache import EmbeddingCache
from regionmed_clip.eval.tasks.registry import check_tasks, find_task
from regionmed_clip.eval.tasks.runner import TASKS, compare_outcomes, run_colour_probe, run_plain_clip, run_tasks
from regionmed_clip.eval.tasks.task_inputs import TaskFindings


@pytest.fixture(scope="module")
def examples(draw_example):
    """30 examples with 0 to 3 regions."""
    return [draw_example(i, num_regions=i % 4) for i in range(30)]


def test_embeddings_are_those_of_the_model_on_each_image_alone(model, processor, examples):
    embedded = embed_examples(model, processor, examples, batch_size=7, progress=False)
    row = 0
    for i, example in enumerate(examples):
        boxes = [r["box"] for r in example["regions"]]
        inputs = processor(images=example["image"]["bytes"], boxes=[boxes] if boxes else None)
        with torch.inference_mode():
            image = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
            regions = model.get_region_features(**inputs).pooler_output[0] if boxes else torch.zeros(0, 16)
        np.testing.assert_allclose(embedded.image_embeds[i], image / image.norm(), atol=1e-5)
        expected = torch.nn.functional.normalize(regions, dim=-1).numpy()
        np.testing.assert_allclose(embedded.region_embeds[row : row + len(boxes)], expected, atol=1e-5)
        row += len(boxes)
    assert row == embedded.num_regions == len(embedded.region_text)


def test_an_image_with_hundreds_of_regions_goes_through_in_parts(model, processor, draw_example, monkeypatch):
    crowd = [draw_example(0, num_regions=1), draw_example(1, num_regions=23), draw_example(2, num_regions=0)]
    whole = embed_examples(model, processor, crowd, progress=False)
    monkeypatch.setattr(region_readings, "REGIONS_PER_PASS", 5)
    parts = embed_examples(model, processor, crowd, progress=False)
    assert parts.num_regions == 24
    np.testing.assert_allclose(parts.region_embeds, whole.region_embeds, atol=1e-5)
    np.testing.assert_allclose(parts.image_embeds, whole.image_embeds, atol=1e-5)


def test_examples_are_streamed_and_only_one_batch_is_ahead(model, processor, draw_example, monkeypatch):
    drawn, seen = [], []
    encode = embedding.encode_images
    monkeypatch.setattr(
        embedding, "encode_images", lambda *args: (seen.append((len(drawn), len(args[2]))), encode(*args))[1]
    )

    def stream():
        for i in range(12):
            drawn.append(i)
            yield draw_example(i)

    embed_examples(model, processor, stream(), batch_size=4, progress=False)
    assert seen == [(4, 4), (8, 4), (12, 4)]


def test_every_reading_shares_images_and_texts(model, processor, examples):
    readings = embed_readings(model, processor, examples, readings=("roi", "dense_mean", "crop"), progress=False)
    first = readings["roi"]
    for split in readings.values():
        assert split.image_embeds is first.image_embeds
        assert split.region_text_embeds is first.region_text_embeds
        np.testing.assert_allclose(np.linalg.norm(split.region_embeds, axis=1), 1, atol=1e-5)
    assert not np.allclose(readings["dense_mean"].region_embeds, readings["crop"].region_embeds)


def test_the_crop_reading_is_the_embedding_of_the_cut_out_box(model, processor, examples):
    embedded = embed_examples(model, processor, examples[1:2], region_reading="crop", progress=False)
    image = processor.image_processor.frame(examples[1]["image"]["bytes"])  # decodes as the harness does
    assert image[0].shape == (3, 32, 32)
    from regionmed_clip.processing.corpus.shown_image import shown_image

    crop = shown_image(examples[1]).crop(tuple(examples[1]["regions"][0]["box"]))
    with torch.inference_mode():
        expected = model.get_image_features(processor(images=crop)["pixel_values"]).pooler_output[0]
    np.testing.assert_allclose(embedded.region_embeds[0], expected / expected.norm(), atol=1e-5)


def test_texts_come_back_in_order_each_encoded_once(model, processor, monkeypatch):
    calls = []
    encode = processor.encode_texts
    monkeypatch.setattr(processor, "encode_texts", lambda texts: (calls.extend(texts), encode(texts))[1])
    texts = ["left nodule with a long tail of words", "cyst", "left nodule with a long tail of words"]
    embeds = embed_texts(model, processor, texts)
    assert sorted(calls) == sorted(set(texts))
    np.testing.assert_array_equal(embeds[0], embeds[2])
    alone = embed_texts(model, processor, ["cyst"])
    np.testing.assert_allclose(embeds[1], alone[0], atol=1e-5)


def test_the_model_returns_to_its_former_mode(model, processor, examples):
    model.train()
    try:
        embed_examples(model, processor, examples[:2], progress=False)
        assert model.training
    finally:
        model.eval()


def test_a_run_gives_sound_results_for_every_task(model, processor, examples, context):
    outcome = run_tasks(
        model, processor, {"test": examples}, model_name="regionmed-clip", context=context, progress=False
    )
    assert {result.task for result in outcome.results} == set(TASKS)
    for result in outcome.results:
        result.check()
        assert result.protocol["split_sha256"] == context.split_sha256
    whole = {r.metric: r for r in outcome.results if r.source is None}
    assert whole["image_to_text_recall@1"].n == 30
    assert whole["region_to_text_accuracy"].n == sum(len(e["regions"]) for e in examples)
    assert 0 <= whole["macro_auroc"].value <= 1


def test_a_patient_is_one_within_a_source_and_an_image_without_one_stands_alone():
    patients = [("a", "1"), ("b", "1"), ("a", None), ("a", "1"), ("a", None)]
    images = [{"source": source, "patient_id": patient} for source, patient in patients]
    assert clusters_of(images).tolist() == [0, 1, 2, 0, 4]


def test_a_denied_finding_is_not_shown(draw_example):
    example, rows = draw_example(0), SplitRows()
    example["regions"][0]["is_negated"] = True
    rows.add(example)
    assert rows.images[0]["findings"] == {example["regions"][1]["finding"]}


def test_a_stream_is_enough_for_tasks_of_one_pass_and_refused_for_others(model, processor, examples, context):
    options = {"model_name": "regionmed-clip", "context": context, "progress": False}
    outcome = run_tasks(model, processor, {"test": iter(examples)}, tasks=("retrieval", "region"), **options)
    assert outcome.embedded.num_images == 30
    with pytest.raises(ValueError, match="can be gone through once, and zero_shot and proposals and robustness and "):
        run_tasks(model, processor, {"test": iter(examples)}, **options)


def test_plain_clip_shows_both_readings_and_differences_are_paired(model, processor, examples, context):
    ours = run_tasks(model, processor, {"test": examples}, model_name="regionmed-clip", context=context, progress=False)
    plain = run_plain_clip(model, processor, {"test": examples}, context=context, progress=False)
    (accuracy,) = [r for r in plain.results if r.metric == "region_to_text_accuracy" and r.stratum is None]
    assert accuracy.model == "plain-clip"
    assert accuracy.value == max(accuracy.protocol["readings"].values())
    assert set(accuracy.protocol["readings"]) == {"dense_mean", "crop"}
    differences = {(r.metric, r.stratum): r for r in compare_outcomes(ours, plain)}
    same = differences["image_to_text_recall@1", None]  # one model, box-free: no difference at all
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.model == "regionmed-clip minus plain-clip"
    assert same.protocol["p_value"] == 1.0
    assert same.protocol["test"].startswith("paired permutation")
    region = differences["region_to_text_accuracy", None]
    assert region.value == pytest.approx(by_model(ours) - by_model(plain))
    assert region.low <= region.value <= region.high
    with pytest.raises(ValueError, match="resampled with seeds 0 and 1; paired intervals need equal draws"):
        compare_outcomes(ours, replace(plain, context=replace(context, seed=1)))


def by_model(outcome) -> float:
    """The region accuracy of the whole split."""
    return next(r.value for r in outcome.results if (r.metric, r.stratum) == ("region_to_text_accuracy", None))


def test_zero_shot_and_balanced_accuracy_are_compared_image_by_image(model, processor, examples, context):
    first = run_tasks(
        model, processor, {"test": examples}, model_name="a", context=context, tasks=["zero_shot"], progress=False
    )
    (auroc,) = (m for m in first.measured if m.key == ("macro_auroc", None, None))
    assert auroc.resampled.shape == (1000,)
    moved = [replace(auroc, value=auroc.value - 0.25, resampled=auroc.resampled - 0.25)]
    difference = next(
        r for r in compare_outcomes(first, replace(first, measured=moved, model_name="b")) if r.metric == "macro_auroc"
    )
    assert (difference.model, difference.metric) == ("a minus b", "macro_auroc")
    assert [difference.value, difference.low, difference.high] == pytest.approx([0.25] * 3)  # alike in every draw
    assert "per_finding" not in difference.protocol
    assert difference.protocol["p_value"] == pytest.approx(2 / 1001)  # no draw of the difference is 0 or below
    assert difference.protocol["test"] == "paired bootstrap"


def test_the_colour_probe_solves_a_corpus_of_colour_blobs(model, processor, draw_example, context):
    # each finding has its own colour here, and either side of the image its own half of the texts: chance is 1 / 6
    train, test = ([draw_example(i) for i in range(a, b)] for a, b in ((0, 60), (60, 100)))
    embedded = embed_examples(model, processor, test, progress=False)
    results = run_colour_probe(processor, train, embedded, context=context, progress=False)
    assert results[0].model == "colour-size-probe"
    assert 0.4 < results[0].value < 0.75  # colour tells the finding, nothing tells the side
    assert results[0].protocol["train_regions"] == 120


def test_a_missing_split_and_an_unknown_task_are_refused(model, processor, examples, context):
    with pytest.raises(ValueError, match="split 'test' was asked for, given are"):
        run_tasks(model, processor, {"train": examples}, model_name="m", context=context)
    with pytest.raises(ValueError, match=r"tasks \['vqa2'\] are not known"):
        run_tasks(model, processor, {"test": examples}, model_name="m", context=context, tasks=["vqa2"])
    with pytest.raises(ValueError, match="the split has no examples"):
        run_tasks(model, processor, {"test": []}, model_name="m", context=context, progress=False)


def test_every_figures_protocol_says_what_the_run_says_and_a_difference_what_both_say(
    model, processor, examples, context
):
    options = {"tasks": ["region"], "progress": False}
    outcomes = []
    for name, reading in (("roi", "roi"), ("crop", "crop")):
        own = replace(context, protocol={"reading": reading, "checkpoint": "tiny"})
        outcomes.append(
            run_tasks(
                model, processor, {"test": examples}, model_name=name, context=own, region_reading=reading, **options
            )
        )
    assert {(r.protocol["reading"], r.protocol["checkpoint"]) for r in outcomes[1].results} == {("crop", "tiny")}
    differences = compare_outcomes(*outcomes)
    assert differences
    assert {r.protocol["checkpoint"] for r in differences} == {"tiny"}
    assert not any("reading" in r.protocol for r in differences)
    for result in differences:
        result.check()


def test_a_figure_of_other_queries_is_no_difference(model, processor, examples, context):
    options = {"tasks": ["region"], "progress": False, "context": context}
    whole = run_tasks(model, processor, {"test": examples}, model_name="a", **options)
    part = run_tasks(model, processor, {"test": examples[:20]}, model_name="b", **options)
    (accuracy,) = (r for r in compare_outcomes(whole, part) if r.metric == "region_to_text_accuracy" and not r.stratum)
    assert accuracy.value is None
    assert "different queries, 43 and 30" in accuracy.protocol["skipped"]
    accuracy.check()


@pytest.mark.parametrize("other", [{"gallery": 5}, {"prompts_sha256": "0" * 64}])
def test_a_figure_of_other_candidates_is_no_difference(model, processor, examples, context, other):
    options = {"tasks": ["region"], "progress": False, "context": context, "model_name": "a"}
    outcome = run_tasks(model, processor, {"test": examples}, **options)
    changed = [replace(figure, protocol=figure.protocol | other) for figure in outcome.measured]
    for result in compare_outcomes(outcome, replace(outcome, measured=changed, model_name="b")):
        assert result.value is None
        assert "different queries or candidates" in result.protocol["skipped"]


def test_tasks_are_given_the_tuning_split_that_there_is(model, processor, examples, context, monkeypatch):
    seen = []
    monkeypatch.setattr(
        runner, "find_task", lambda name: lambda inputs: seen.append(inputs) or TaskFindings(measured=[])
    )
    options = {"tasks": ["retrieval"], "model_name": "m", "progress": False}
    for splits in (("test", "validation"), ("test", "tuning", "train"), ("test",)):
        given = {name: examples[:3] if name == "test" else examples[3:5] for name in splits}
        run_tasks(model, processor, given, context=context, **options)
    assert [inputs.tuning_split for inputs in seen] == ["validation", "tuning", "validation"]
    assert seen[1].embed_split("tuning").image_ids == [example["image_id"] for example in examples[3:5]]
    assert seen[1].embed_split("tuning") is seen[1].embed_split("tuning")
    assert list(seen[1].examples_of("train")) == examples[3:5]
    with pytest.raises(ValueError, match="there is no split 'validation'; there is test"):
        seen[2].embed_split("validation")


def test_what_a_task_changes_in_its_examples_is_never_kept(model, processor, examples, context, tmp_path, monkeypatch):
    hashed = [{**example, "sha256": example["image_id"]} for example in examples[:4]]
    changed = [{**example, "caption": "changed"} for example in hashed]
    found = []

    def measure(inputs):
        found.append(inputs.embed(changed).captions)
        return TaskFindings(measured=[])

    monkeypatch.setattr(runner, "find_task", lambda name: measure)
    cache = EmbeddingCache(tmp_path)
    options = {"tasks": ["retrieval"], "model_name": "m", "context": context, "progress": False, "cache": cache}
    run_tasks(model, processor, {"test": hashed}, **options)
    assert found == [["changed"]]
    assert len(list(tmp_path.iterdir())) == 1  # the split under test alone


def test_names_of_tasks_come_in_one_order_and_once():
    assert check_tasks(["region", "retrieval", "region"]) == ("retrieval", "region")
    for wrong in (["vqa2"], []):
        with pytest.raises(ValueError, match="are not known; choose from retrieval, zero_shot"):
            check_tasks(wrong)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_registry_is_there(name):
    assert callable(find_task(name))
