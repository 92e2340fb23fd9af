"""Every stage reads its own data at its own size of frames, prepared once for all stages that share them."""

import pytest

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.stage_data import check_splits, open_training_data, prepare_training_data

SMOKE = RECIPES_FOLDER / "smoke.yaml"
TINY = "phantom:num_train=3,num_test=2"


def test_stages_have_their_own_data_and_frames_and_share_what_is_the_same(tmp_path):
    changes = [f"data={TINY}", "image_size=24", "stages.region.image_size=32", f"stages.joint.data={TINY},seed=7"]
    recipe = load_recipe(SMOKE, changes).settled()
    image_processor = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=8)
    prepare_training_data(recipe, tmp_path, image_processor)
    data = open_training_data(recipe, tmp_path, image_processor)
    assert data.stores["global"] is data.store
    sides = {name: store.samples([0])[0].frame.shape[-1] for name, store in data.stores.items()}
    assert sides == {"global": 24, "region": 32, "joint": 24}
    captions = {name: store.samples([0])[0].caption for name, store in data.stores.items()}
    assert captions["region"] == captions["global"] != captions["joint"]
    texts = list(data.texts())
    assert captions["global"] in texts
    assert captions["joint"] in texts


def test_a_stage_whose_data_have_no_training_split_is_refused():
    check_splits(load_recipe(SMOKE).settled())
    recipe = load_recipe(SMOKE, ["stages.joint.data=phantom:num_train=0,num_test=4"]).settled()
    with pytest.raises(ValueError, match=r"recipe 'smoke': .*A recipe trains on 'train' and evaluates on 'test'"):
        check_splits(recipe)
