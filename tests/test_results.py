"""Pages that show results show all of them: what is stored in the notebook is what the files say today."""

import csv
import json

import nbformat
import pytest

import book
import results
from pevl.train.ablate import read_rows
from settings import ROOT

FILES = sorted(results.RESULTS.glob("*.csv"))
WEIGHTS = ROOT / "pevl" / "weights"
AGAIN = "python tools/nb.py run nbs/"


def page(name):
    "Everything that a notebook's stored outputs say"
    cells = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4).cells
    outputs = [o for c in cells for o in c.get("outputs", [])]
    return "\n".join(o.get("data", {}).get("text/markdown", "") + o.get("text", "") for o in outputs)


def missing(text, rows):
    "Rows that a page does not show, value for value: in a line of a table, or in a protocol"
    tables = [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    lines = [set(t) for t in tables]
    for r in rows:
        mine = {k: v for k, v in r.items() if v and f"{k} `{v}`" not in text}
        if not any(set(mine.values()) <= line for line in lines):
            yield r


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_row_is_on_the_page(path):
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    text = page("reference/03_results")
    assert rows and not [*missing(text, rows)], f"{AGAIN}reference/03_results.ipynb"
    assert f"All {len(rows)} rows of <code>pevl/results/{path.name}</code>" in text, (
        f"{AGAIN}reference/03_results.ipynb"
    )


def test_a_row_that_is_not_there_is_missed():
    with open(FILES[0], newline="", encoding="utf-8") as f:
        row = next(csv.DictReader(f))
    text = page("reference/03_results")
    assert [*missing(text, [row])] == []
    assert [*missing(text, [row | dict(top1="0.12345")])] and [*missing(text, [row | dict(seed="77")])]


def test_weights_are_on_the_page():
    text = page("reference/03_results")
    for path in WEIGHTS.glob("*.json"):
        note = json.loads(path.read_text())
        assert note["sha256"] in text and all(c in text for c in note.get("commands", [note.get("command")]))


def test_benchmarks_without_rows_say_so():
    from pevl.data.benchmarks import BENCHMARKS

    text = page("reference/03_results")
    for key, b in BENCHMARKS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {b.name} |"))
        assert ("**not measured**" in line) != (results.RESULTS / f"{key}.csv").exists()


def test_recipe_shows_every_row_of_the_ablation():
    text, rows = page("recipes/07_ablations"), read_rows(results.RESULTS / "ablate.csv")
    assert f"| {len(rows)} runs of {len({r['variant'] for r in rows})} rows" in text, (
        f"{AGAIN}recipes/07_ablations.ipynb"
    )
    assert "smoke run: a miniature, numbers mean nothing" in text


def test_own_clips_are_the_chapters_cells():
    "The file's rows are trained by what the notebook defines"
    known = results.definitions(
        ROOT / "nbs" / "use" / "12_your_own_data.ipynb", ("SAY", "recipe"), dict(replace=None, preset=None)
    )
    assert callable(known["recipe"]) and len(known["SAY"]) == 6


@pytest.mark.parametrize("name", ["reference/03_results", "recipes/07_ablations", "train/08_ablate"])
def test_tables_are_tables_in_the_book(name):
    "Markdown that a cell writes has tables (nb_render_markdown_format: gfm in _config.yml)"
    path = book.HTML / f"{name}.html"
    if not path.exists():
        pytest.skip("no book: make book")
    html = path.read_text(encoding="utf-8")
    assert "<table" in html and "|—" not in html  # a table that is not understood is a paragraph with dashes
