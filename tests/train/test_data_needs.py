"""A recipe whose terms the data or the model's grid cannot serve is refused by name before any training."""

import pytest

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.data_needs import refuse_missing_texts, refuse_small_boxes
from regionmed_clip.train.pretraining import build_config

SMOKE = RECIPES_FOLDER / "smoke.yaml"
LABEL_FREE = "stages=[{name: label_free, steps: 3, loss_weights: {region_distillation: 1.0}}]"
IMAGES_ALONE = [(-1, []), (-1, [])]
CAPTIONS_ALONE = [(-1, []), (7, [])]
BOTH = [(-1, [-1, 8]), (7, [])]


@pytest.mark.parametrize(
    ("text_keys", "message"),
    [
        (IMAGES_ALONE, "stage 'global' has the term 'image_text', and no image of the training split of phantom"),
        (
            IMAGES_ALONE,
            r"has a caption \(one that says .*\. Leave the term out; region_distillation needs images alone",
        ),
        (CAPTIONS_ALONE, "stage 'region' has the term 'region_text', and no image .* has a region text"),
    ],
)
def test_a_term_that_compares_with_texts_nobody_wrote_is_refused(text_keys, message):
    with pytest.raises(ValueError, match=message):
        refuse_missing_texts(load_recipe(SMOKE), text_keys)


def test_images_alone_serve_a_label_free_recipe_and_texts_are_read_no_further_than_needed():
    refuse_missing_texts(load_recipe(SMOKE, [LABEL_FREE]), IMAGES_ALONE)
    unread = iter([*BOTH, None])
    refuse_missing_texts(load_recipe(SMOKE), unread)
    assert next(unread) is None


def test_boxes_narrower_than_a_patch_and_a_half_are_refused():
    recipe = load_recipe(SMOKE, [LABEL_FREE])  # 48 pixels in patches of 8: a patch and a half is a quarter
    with pytest.raises(ValueError, match=r"min_side is 0.2; with 6 patches a side it must be at least 0.2500"):
        refuse_small_boxes(recipe, build_config(recipe))
    wider = load_recipe(SMOKE, [LABEL_FREE, "distillation.min_side=0.25"])
    refuse_small_boxes(wider, build_config(wider))
    refuse_small_boxes(load_recipe(SMOKE), build_config(recipe))  # no stage draws boxes
