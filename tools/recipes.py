"""The six recipe notebooks: one template, six sets of facts.

python tools/recipes.py write     template and facts -> nbs/recipes/*.ipynb; unchanged cells keep their ids and outputs
python tools/recipes.py check     exit status 1 and a line for each notebook that differs from the template

Write, then `python tools/nb.py run nbs/recipes/*.ipynb`. Change the template
(recipe.txt) or the facts (recipes.toml), never a notebook.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat

import colab
import nb
from settings import ROOT, settings

NBS = ROOT / settings()["nbs_path"] / "recipes"
COLAB = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}  # what Colab starts the notebook on

HERE = Path(__file__).parent
_TABLES = tomllib.loads((HERE / "recipes.toml").read_text(encoding="utf-8"))
FACTS = {name: _TABLES["defaults"] | facts for name, facts in _TABLES.items() if name != "defaults"}
TEMPLATE = HERE / "recipe.txt"
BY_HAND = ["07_ablations"]  # recipes that follow no template


def text_of(name: str) -> str:
    "The notebook as text of `# %%` cells"
    facts, cfg = dict(FACTS[name]), settings()
    facts |= dict(name=name, train=facts["counts"][0], test=facts["counts"][1])
    facts |= dict(train_number=str(facts["train"]), test_number=str(facts["test"]))
    own = dict(dataset=facts["dataset"], version=facts["version"], metric=facts["best"])
    facts |= {k: facts[k].format(**own) for k in ("full", "small")}
    facts |= dict(repo=f"{cfg['user']}/{cfg['repo']}", branch=cfg["branch"], git=cfg["git_url"])

    def fill(m):
        key, how = m[1].split("|") if "|" in m[1] else (m[1], "")
        value = facts[key]
        if how == "py":
            return repr(value)
        return f"{value:,}" if isinstance(value, int) else str(value)

    out = []
    for cell in re.split(r"(?m)^(?=# %%)", TEMPLATE.read_text(encoding="utf-8")):
        prose, cell = cell.startswith("# %% [markdown]"), re.sub(r"\{\{([\w|]+)\}\}", fill, cell)
        if prose:
            head, *lines = cell.rstrip("\n").split("\n")
            cell = "\n".join([head, *(f"# {line}".rstrip() for line in lines)]) + "\n\n"
        out.append(cell)
    return "".join(out)


def notebook(name: str):
    "The notebook without ids and outputs, formatted as the others"
    import jupytext

    new, place = jupytext.reads(text_of(name), fmt="py:percent"), f"{NBS.name}/{name}"
    for cell in filter(colab.is_install, new.cells):
        cell.source = colab.install_cell(place, **colab.wants(place, new))
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, f"{name}.ipynb")
        nb.save(new, path)
        how = ["--config", str(ROOT / "pyproject.toml"), "-q"]
        subprocess.run([sys.executable, "-m", "ruff", "format", *how, str(path)], check=True)
        return nbformat.read(path, 4)


def sources(book) -> list[tuple]:
    "What is compared; the cell for Colab has a check of its own (tools/colab.py)"
    return [(c.cell_type, "" if colab.is_install(c) else c.source) for c in book.cells]


def write():
    for name in FACTS:
        new, path, old = notebook(name), NBS / f"{name}.ipynb", {}
        for cell in nbformat.read(path, 4).cells if path.exists() else ():
            old.setdefault((cell.cell_type, cell.source), []).append(cell)
        new.cells = [same.pop(0) if (same := old.get((c.cell_type, c.source))) else c for c in new.cells]
        new.metadata |= COLAB
        nb.save(new, path)
        print(f"wrote {path.relative_to(ROOT)}")


def differing():
    "Lines that say which notebooks are not what the template makes"
    for name in FACTS:
        path = NBS / f"{name}.ipynb"
        if not path.exists():
            yield f"{path.relative_to(ROOT)}: missing (python tools/recipes.py write)"
            continue
        old, new = sources(nbformat.read(path, 4)), sources(notebook(name))
        at = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
        )
        if old != new:
            yield f"{path.relative_to(ROOT)}: cell {at} differs from tools/recipe.txt and tools/recipes.toml"
    for path in sorted(set(NBS.glob("*.ipynb")) - {NBS / f"{n}.ipynb" for n in (*FACTS, *BY_HAND)}):
        yield f"{path.relative_to(ROOT)}: no facts in tools/recipes.toml"


def check():
    faults = list(differing())
    print(*faults, sep="\n") if faults else print(f"{len(FACTS)} recipes follow the template")
    sys.exit(bool(faults))


if __name__ == "__main__":
    commands = dict(write=write, check=check)
    if sys.argv[1:2] and sys.argv[1] in commands and len(sys.argv) == 2:
        commands[sys.argv[1]]()
    else:
        sys.exit(__doc__)
