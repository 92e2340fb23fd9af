"""A recipe whose terms the data or the model's grid cannot serve is refused by name before any training."""

import pytest

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.data_needs import refuse_missing_texts, refuse_odd_sizes, refuse_small_boxes
from regionmed_clip.train.model_building import build_config

SMOKE = RECIPES_FOLDER / "smoke.yaml"
SMOKE_RECIPE = load_recipe(SMOKE)
LABEL_FREE = "stages=[{name: label_free, steps: 3, loss_weights: {region_distillation: 1.0}}]"
IMAGES_ALONE = [(-1, []), (-1, [])]
CAPTIONS_ALONE = [(-1, []), (7, [])]
BOTH = [(-1, [-1, 8]), (7, [])]


class Texts:
    """Training samples of which only the keys of their texts are asked."""

    def __init__(self, keys):
        self.keys = keys

    def text_keys(self):
        return self.keys


def stores(recipe, keys) -> dict[str, Texts]:
    return {stage.name: Texts(keys) for stage in recipe.stages}


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
        refuse_missing_texts(SMOKE_RECIPE, stores(SMOKE_RECIPE, text_keys))


def test_images_alone_serve_a_label_free_recipe_and_texts_are_read_no_further_than_needed():
    label_free = load_recipe(SMOKE, [LABEL_FREE])
    refuse_missing_texts(label_free, stores(label_free, IMAGES_ALONE))
    unread = iter([*BOTH, None])
    refuse_missing_texts(SMOKE_RECIPE, stores(SMOKE_RECIPE, BOTH) | {"joint": Texts(unread)})
    assert next(unread) is None


def test_each_stage_is_held_against_its_own_data():
    recipe = load_recipe(SMOKE, ["stages.region.data=jsonl:plain"])
    refuse_missing_texts(recipe, stores(recipe, BOTH) | {"global": Texts(CAPTIONS_ALONE)})  # it has no region term
    with pytest.raises(ValueError, match=r"stage 'region' .* of the training split of jsonl:plain has a region text"):
        refuse_missing_texts(recipe, stores(recipe, BOTH) | {"region": Texts(CAPTIONS_ALONE)})


@pytest.mark.parametrize(("size", "ways_out"), [(50, "48 or 56"), (5, "8 or 16")])
def test_frames_that_patches_do_not_fill_are_refused(size, ways_out):
    recipe = load_recipe(SMOKE, [f"stages.joint.image_size={size}"])
    with pytest.raises(ValueError, match=f"stage 'joint' has image_size {size}; patches of 8 .* set it to {ways_out}"):
        refuse_odd_sizes(recipe, build_config(recipe))
    refuse_odd_sizes(SMOKE_RECIPE, build_config(SMOKE_RECIPE))


def test_boxes_narrower_than_a_patch_and_a_half_are_refused():
    recipe = load_recipe(SMOKE, [LABEL_FREE])  # 48 pixels in patches of 8: a patch and a half is a quarter
    with pytest.raises(ValueError, match=r"min_side is 0.2; with 6 patches a side, as stage 'label_free' has, it must"):
        refuse_small_boxes(recipe, build_config(recipe))
    wider = load_recipe(SMOKE, [LABEL_FREE, "distillation.min_side=0.25"])
    refuse_small_boxes(wider, build_config(wider))
    larger = load_recipe(SMOKE, [LABEL_FREE.replace("loss", "image_size: 64, loss")])  # 8 patches a side
    refuse_small_boxes(larger, build_config(larger))
    refuse_small_boxes(SMOKE_RECIPE, build_config(recipe))  # no stage draws boxes
