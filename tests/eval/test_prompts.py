"""Prompts: English sentences, each with its source, and denials that match what they deny."""

from __future__ import annotations

import pytest

from regionmed_clip.eval.prompts import (
    CLASS_WORDINGS,
    absence_prompts,
    ensemble_prompts,
    normal_prompts,
    presence_prompts,
)
from regionmed_clip.processing.corpus.synonyms import canonical_finding


def test_the_presence_prompts_are_those_of_all_published_figures():
    assert presence_prompts("axial CT of the abdomen", "cyst") == ("Axial CT of the abdomen with a cyst.", "cyst")
    assert presence_prompts("chest radiograph", "cardiomegaly") == (
        "Chest radiograph with cardiomegaly.",
        "cardiomegaly",
    )


def test_every_presence_prompt_has_its_denial():
    assert absence_prompts("axial CT of the abdomen", "cyst") == ("Axial CT of the abdomen without cyst.", "no cyst")
    assert len(absence_prompts("fundus photograph", "drusen")) == len(presence_prompts("fundus photograph", "drusen"))


def test_a_normal_image_is_named_as_captions_name_it():
    expected = ("Normal chest radiograph without focal abnormality.", "no focal abnormality")
    assert normal_prompts("chest radiograph") == expected


def test_the_ensemble_holds_templates_synonyms_and_the_description():
    wordings = ensemble_prompts("chest radiograph", "pleural effusion")
    texts = [wording.text for wording in wordings]
    assert tuple(texts[:2]) == presence_prompts("chest radiograph", "pleural effusion")
    assert "Chest radiograph with a pleural fluid." not in texts  # a mass noun takes no article
    assert {"Chest radiograph showing pleural fluid.", "this is a photo of pleural fluid"} <= set(texts)
    assert texts[-1] == "fluid in the pleural cavity"
    assert len(texts) == len(set(texts)) == 11  # 5 templates, 2 names, 1 description


def test_a_synonym_gets_the_description_of_the_finding():
    texts = [wording.text for wording in ensemble_prompts("blood smear", "thrombocyte")]
    assert texts[-1] == CLASS_WORDINGS["platelet"][0].text


@pytest.mark.parametrize("finding", ["pneumothorax", "hard exudate", "erythrocyte", "a finding unheard of"])
def test_every_wording_names_its_source(finding):
    assert all(wording.source for wording in ensemble_prompts("chest radiograph", finding))


def test_descriptions_stand_under_the_name_that_keys_use():
    assert all(canonical_finding(finding) == finding for finding in CLASS_WORDINGS)
