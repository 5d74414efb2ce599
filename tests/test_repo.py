"""Rules that the repository as a whole keeps."""

import ast
import base64
import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

import links
from settings import ROOT, notebooks, settings

CFG = settings()
LIB, NBS = ROOT / CFG["lib_path"], ROOT / CFG["nbs_path"]
ORDER = [
    "data",
    "model",
    "loss",
    "train",
    "use",
]  # a module imports from its own folder and from those before it
CHAPTERS = [p for p in notebooks() if p.parent != NBS and p.parent.name != "recipes"]
HERE = {p: p.relative_to(ROOT).as_posix() for p in notebooks()}


def files():
    "What git tracks or would track"
    cmd = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(cmd, cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    return [p for name in listed.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def test_version():
    import pevl

    assert pevl.__version__ == CFG["version"]


def test_no_file_is_large():
    large = {p.name: p.stat().st_size for p in files() if p.stat().st_size > 13e6}
    assert not large


def test_no_path_of_this_machine():
    bad = [f"{ROOT}/", f"{ROOT.parent}/", f"{Path.home()}/", tempfile.gettempdir().rstrip("/") + "/"]
    bad = [b.encode() for b in bad if len(b) > 3]
    found = []
    for p in files():
        data = p.read_bytes()
        if b"\0" not in data[:8000]:
            found += [f"{p.relative_to(ROOT)}: {b.decode()}" for b in bad if b in data]
    assert not found


@pytest.mark.parametrize("path", notebooks(), ids=HERE.get)
def test_notebook_is_small_and_executed(path):
    assert path.stat().st_size <= 1.5e6
    shown = 0
    for i, cell in enumerate(cells(path)):
        for o in cell.get("outputs", []):
            shown += 1
            assert o["output_type"] != "error", f"cell {i} stores an error"
            for kind, data in o.get("data", {}).items():
                size = (
                    len("".join(data))
                    if kind == "image/svg+xml"
                    else len(base64.b64decode("".join(data)))
                    if kind.startswith("image/")
                    else 0
                )
                assert size <= 150_000, f"cell {i}: a {kind} of {size // 1000} kB"
    assert shown, "no stored outputs: tools/nb.py run"


@pytest.mark.parametrize("path", CHAPTERS, ids=HERE.get)
def test_chapter_form(path):
    "What every chapter promises its reader"
    all_cells = cells(path)
    prose = [source(c) for c in all_cells if c["cell_type"] == "markdown"]
    code = [source(c) for c in all_cells if c["cell_type"] == "code"]
    assert re.match(r"# \S.*\n+> \S", prose[0]), "a title and a question"
    assert f"/blob/{CFG['branch']}/{HERE[path]})" in "\n".join(prose[:3]), "a Colab badge"
    assert any("google.colab" in c and c.startswith("#| hide") for c in code), (
        "the hidden installation cell for Colab"
    )
    assert sum(len(re.findall(r"\b(?:test_\w+\(|assert\b|expect_fail|raises\()", c)) for c in code) >= 3, (
        "checks"
    )
    pictures = sum(
        any(k.startswith("image/") for k in o.get("data", {}))
        for c in all_cells
        for o in c.get("outputs", [])
    )
    html = sum("text/html" in o.get("data", {}) for c in all_cells for o in c.get("outputs", []))
    assert pictures or (html and path.parent.name == "use"), "a picture"
    assert any("code-fold: true" in c for c in code), "an exercise with a folded solution"


def test_index_lists_every_chapter():
    "With its title and its question, as the chapter has them"
    table = "\n".join(source(c) for c in cells(NBS / "index.ipynb"))
    for path in CHAPTERS:
        title, question = re.match(r"# (.+)\n+> (.+)", source(cells(path)[0])).groups()
        assert f"[{title}]({path.relative_to(NBS).as_posix()}) | {question} |" in table


def test_one_notebook_one_module():
    from_notebooks = set()
    for path in (p for p in CHAPTERS if p.parent.name != "reference"):  # those pages export nothing
        named = re.findall(
            r"^#\|\s*default_exp\s+(\S+)",
            "\n".join(source(c) for c in cells(path) if c["cell_type"] == "code"),
            re.M,
        )
        name = re.sub(r"^\d+_", "", path.stem)
        assert named == [f"{path.parent.name}.{name}"], HERE[path]
        from_notebooks.add(f"{path.parent.name}/{name}.py")
    modules = {p.relative_to(LIB).as_posix() for p in LIB.rglob("*.py") if not p.name.startswith("_")}
    assert modules == from_notebooks


@pytest.mark.parametrize("path", sorted(LIB.rglob("*.py")), ids=lambda p: p.relative_to(LIB).as_posix())
def test_imports_go_one_way(path):
    here = path.relative_to(LIB).parts
    rank = ORDER.index(here[0]) if here[0] in ORDER else len(ORDER)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            package = (
                list(path.relative_to(LIB.parent).with_suffix("").parts)[: -node.level or None]
                if node.level
                else []
            )
            names = [".".join([*package, *([node.module] if node.module else [])])]
            names += [f"{names[0]}.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            assert parts[0] not in ("nbdev", "fastcore", "IPython"), (
                f"{name}: the package works without nbdev"
            )
            if parts[0] == LIB.name and len(parts) > 1 and parts[1] in ORDER:
                assert ORDER.index(parts[1]) <= rank, f"{here[0]} imports {name}"


def test_nothing_is_unpickled():
    for path in LIB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {a.name for a in node.names}
                if names <= {"UnpicklingError", "dumps"}:
                    continue  # an exception to catch; and writing runs nothing
                names |= {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "cloudpickle"}, path.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keys = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                called = ast.unparse(node.func)
                assert called != "torch.load" or keys.get("weights_only") is True, (
                    f"{path.name}:{node.lineno}"
                )
                assert called != "np.load" or keys.get("allow_pickle") in (None, False), (
                    f"{path.name}:{node.lineno}"
                )


def test_links_tool():
    cfg = {
        **CFG,
        "git_url": "https://github.com/new/name",
        "branch": "dev",
        "doc_host": "https://new.github.io",
        "doc_baseurl": "/name",
    }
    old = "(https://colab.research.google.com/github/x/y/blob/main/nbs/a.ipynb) pip install git+https://github.com/x/pevl https://old.github.io/pevl"
    new = "(https://colab.research.google.com/github/new/name/blob/dev/nbs/b/c.ipynb) pip install git+https://github.com/new/name https://new.github.io/name"
    assert links.rewrite(old, cfg, "nbs/b/c.ipynb") == new
    other = "https://github.com/mlfoundations/open_clip/blob/main/README.md"
    assert links.rewrite(other, cfg) == other


def test_constraints_cover_the_requirements():
    pinned = {
        line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    for key in ("", "nb_", "dev_"):
        for line in filter(None, CFG[f"{key}requirements"].splitlines()):
            name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
            assert name in pinned, name
