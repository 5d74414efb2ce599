"""The recipes: six notebooks from one template, one by hand, and a switch that says what it needs."""

import os

import nbformat
import pytest

import nb
import recipes
from pevl.data.benchmarks import BENCHMARKS
from settings import ROOT

NAMES = list(recipes.FACTS)


def book(name):
    return nbformat.read(recipes.NBS / f"{name}.ipynb", 4)


def test_six():
    assert [n[3:] for n in NAMES] == ["simdive", "diving48", "gym99", "gym288", "haa500", "smarthome"]
    assert sorted(p.stem for p in recipes.NBS.glob("*.ipynb")) == NAMES + recipes.BY_HAND


def test_the_notebooks_follow_the_template():
    assert list(recipes.differing()) == []


def test_a_change_by_hand_is_noticed(tmp_path, monkeypatch):
    made, changed = book(NAMES[0]), book(NAMES[0])
    monkeypatch.setattr(recipes, "NBS", tmp_path / "nbs")
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    monkeypatch.setattr(recipes, "FACTS", {NAMES[0]: recipes.FACTS[NAMES[0]]})
    monkeypatch.setattr(recipes, "notebook", lambda name: made)
    (tmp_path / "nbs").mkdir()
    assert "missing" in next(recipes.differing())
    changed.cells[7].source += "\nx = 1"
    nbformat.write(changed, tmp_path / "nbs" / f"{NAMES[0]}.ipynb")
    (tmp_path / "nbs" / "07_mine.ipynb").write_text("{}")
    a, b = recipes.differing()
    assert "cell 7" in a and "07_mine" in b


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_those_of_the_readers(name):
    f = recipes.FACTS[name]
    if f["dataset"] == "simdive":
        return
    bench = BENCHMARKS[f["dataset"]]
    clips = bench.versions[f["version"]]
    assert f["counts"] == [clips[bench.splits["train"]], clips[bench.splits["test"]]]
    assert f["classes"] == bench.classes and f"<{bench.page}>" in f["where"]
    assert f["best"] == bench.metric


@pytest.mark.parametrize("name", NAMES)
def test_outputs_say_that_they_are_of_a_smoke_run(name):
    shown = [o.get("text", "") for c in book(name).cells for o in c.get("outputs", [])]
    assert shown[0] == "smoke run: a miniature, numbers mean nothing\n"
    assert any("all computed" in t for t in shown)
    ours = [t for t in shown if "ours  " in t]
    assert len(ours) == 1
    measured = (ROOT / "pevl" / "results" / f"{recipes.FACTS[name]['table_file']}.csv").exists()
    assert ("not measured yet" in ours[0]) != measured


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_numbers_are_marked(name):
    f = recipes.FACTS[name]
    row = next(line for c in book(name).cells for line in c.source.splitlines() if f["table"] in line)
    assert row.startswith("| *the paper's number* | *") and "not measured here* |" in row
    shown = "".join(o.get("text", "") for c in book(name).cells for o in c.get("outputs", []))
    for number in f["paper"].values():
        line = next(line for line in shown.splitlines() if number in line)
        assert line.startswith("the paper's ")


def test_colab_starts_it_with_a_gpu():
    for name in NAMES:
        assert book(name).metadata["accelerator"] == "GPU"


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia"), reason="there is a GPU")
def test_a_full_run_without_a_gpu_stops_with_one_line(monkeypatch):
    monkeypatch.setenv("PEVL_SMOKE", "0")
    with pytest.raises(nb.NotebookError) as e:
        nb.execute(recipes.NBS / f"{NAMES[1]}.ipynb", timeout=120)
    first = str(e.value).splitlines()[0]
    assert "raised SystemExit: PEVL_SMOKE=0 asks for the full run: expected a GPU" in first
