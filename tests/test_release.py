"""The weights that ship: whole, small, described by what was measured, and as good on new dives as they say."""

import json

import pytest

import release
from pevl.data.datasets import clips_for, read_diving48
from pevl.data.simdive import generate
from pevl.data.text import prompt
from pevl.model.clip import release_file
from pevl.model.pevl import RELEASES, create_model, get_config
from pevl.train.evaluate import configuration_hash, evaluate, weights_checksum
from pevl.train.recipe import from_dict
from pevl.use.predict import read_facts

NAMES = [*RELEASES]


@pytest.mark.parametrize("name", NAMES)
def test_file_and_card(name):
    path = release.file_of(name)
    assert path == release_file(RELEASES[name])  # found by its checksum
    assert path.stat().st_size <= 12e6
    note, text = release.describe(name)
    assert json.loads(path.with_suffix(".json").read_text()) == note, "python tools/release.py card " + name
    assert path.with_suffix(".md").read_text() == text, "python tools/release.py card " + name


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_of_this_file(name):
    own = [r for r in release.rows_of(name) if r["shipped"]]
    assert {r["noise"] for r in own} >= {0, 1}
    assert {r["weights"] for r in own} == {weights_checksum(create_model("pevl_nano", weights=name))}
    for r in own:
        assert (
            r["evaluated"] == r["clips"] == 1200 and r["missing"] == r["broken"] == 0 and r["classes"] == 48
        )


@pytest.mark.parametrize("name", NAMES)
def test_new_dives(name, tmp_path):
    "Dives that nobody has seen: within three standard errors of the number on the card"
    clips = read_diving48(generate(tmp_path / "new", 48, 1, 2, seed=4321, workers=2, progress=False), "test")
    model, facts = create_model("pevl_nano", weights=name), release.facts_of(release.file_of(name))
    assert facts["classes"] == clips.classes
    texts = [prompt(t, facts["kind"], facts["template"]) for t in clips.classes]
    found = evaluate(model, clips_for(clips, model.config), texts).summary()["top1"]
    p = next(r["top1"] for r in release.rows_of(name) if r["shipped"] and r["noise"] == 0)
    assert found > p - 3 * (p * (1 - p) / len(clips)) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_new_field_of_the_recipe_changes_no_hash(name):
    "The same training today has the hash that its row has"
    facts = read_facts(name)
    recipe = from_dict(facts["recipe"])
    config = get_config(recipe.model.name, **recipe.model.overrides())
    assert configuration_hash(config, recipe) == facts["configuration"]
