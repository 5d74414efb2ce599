"""On Colab: what the notebooks install can be resolved, replaces nothing that is loaded, and is enough."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import colab
import constraints
from settings import ROOT, notebooks, settings

CFG = settings()
PYTHONS = "3.11", "3.12", "3.13"
BOOKS = {colab.name_of(p): json.loads(p.read_text(encoding="utf-8")) for p in notebooks()}
WANTS = {name: colab.wants(name, book) for name, book in BOOKS.items()}
LINES = sorted(
    {w["extras"] for w in WANTS.values()} | {tuple(sorted(("book", e))) for e in ("app", "onnx", "pose")}
)
# What Colab's kernel has loaded before the first cell runs, or what its drivers belong to: a new version of these
# means "restart the runtime", or no GPU.
LOADED = "torch torchvision triton numpy pillow matplotlib ipykernel ipython ipywidgets jupyter-client pyzmq tornado traitlets pandas"
NO_INDEX = re.compile(
    r"error sending request|failed to (fetch|connect)|connection|timed out|dns|could not connect|offline",
    re.I,
)


def needs(*extras):
    "Requirements of the package with these extras, as settings.ini has them: (line, ...)"
    lines = [
        line for key in ("", *(f"{e}_" for e in extras)) for line in CFG[f"{key}requirements"].splitlines()
    ]
    return tuple(line.strip() for line in lines if line.strip())


packages_distributions = functools.cache(packages_distributions)


@functools.cache
def repaired(name):
    return colab.repaired(name, BOOKS[name])


class NoIndex(Exception):
    "The package index does not answer"


def uv(args, lines, out=None):
    "What `uv pip compile` says: name -> version; AssertionError for a conflict, NoIndex if it cannot know"
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "-",
        "--no-build",
        "--no-header",
        "--no-annotate",
    ]
    command += ["--python-platform", "linux", *args, *(["-o", str(out)] if out else [])]
    env = os.environ | dict(
        UV_PYTHON_DOWNLOADS="never", UV_HTTP_TIMEOUT="30", UV_HTTP_RETRIES="1", NO_COLOR="1"
    )
    text = "\n".join(lines) + "\n"
    try:
        ran = subprocess.run(command, input=text, capture_output=True, text=True, env=env, timeout=120)
    except subprocess.TimeoutExpired:
        raise NoIndex("the package index took longer than two minutes") from None
    if ran.returncode:
        said = ran.stderr.strip()
        if "No solution found" not in said and NO_INDEX.search(said):
            raise NoIndex(said.splitlines()[-1])
        raise AssertionError(said)
    return pins(out.read_text() if out else ran.stdout)


def pins(text):
    return {constraints.canonical(n): v for n, v in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", text)}


def attempt(*args):
    "As `uv`; what goes wrong is returned"
    try:
        return uv(*args)
    except (NoIndex, AssertionError) as e:
        return e


@functools.cache
def resolve(extras):
    "Everything that is asked of the resolver about one line, at once: it mostly waits for the index"
    lines, there = needs(*extras), (ROOT / "tests" / "colab.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(3) as pool:
        out = Path(tmp, "colab.txt")
        out.write_text(there, encoding="utf-8")  # as pip does, uv keeps what it finds in there if it fits
        todo = {python: (["--python-version", python], lines) for python in PYTHONS}
        todo["lowest"] = ["--python-version", PYTHONS[0], "--resolution", "lowest-direct"], lines
        todo["colab"] = ["--python-version", "3.12"], lines, out
        return dict(zip(todo, pool.map(lambda args: attempt(*args), todo.values()), strict=True))


def known(answer):
    "The versions; skips if the index did not answer, fails if there is a conflict"
    if isinstance(answer, NoIndex):
        pytest.skip(f"the package index cannot be reached: {answer}")
    if isinstance(answer, AssertionError):
        pytest.fail(str(answer), pytrace=False)
    return answer


# --- the cells ---


@pytest.mark.skipif(
    "tools/colab.py check" not in (ROOT / "Makefile").read_text(), reason="not part of make lint yet"
)
@pytest.mark.parametrize("name", BOOKS)
def test_cell_and_switch_follow_the_rule(name):
    assert repaired(name) == BOOKS[name], "python tools/colab.py write"


@pytest.mark.parametrize("name", BOOKS)
def test_writing_changes_one_cell_and_is_done_at_once(name):
    old = BOOKS[name]
    new = repaired(name)
    assert colab.repaired(name, new) == new
    assert (new | {"cells": 0, "metadata": 0}) == (old | {"cells": 0, "metadata": 0})
    for a, b in zip(old["cells"], new["cells"], strict=True):
        assert a == b or (colab.is_install(a) and (a | {"source": 0}) == (b | {"source": 0}))
    assert {k: v for k, v in old["metadata"].items() if k not in colab.GPU} == {
        k: v for k, v in new["metadata"].items() if k not in colab.GPU
    }


def test_gpu_switch():
    "Recipes ask for a T4, and nothing that runs in a minute on a CPU does: GPUs on Colab are rationed"
    for name, book in BOOKS.items():
        metadata = repaired(name)["metadata"]
        if name.startswith("recipes/"):
            assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
        elif not any(re.match(r"#\s*\|\s*gpu\b", s) for s in colab.code_of(book)):
            assert "accelerator" not in metadata and "colab" not in metadata, name


def test_a_notebook_without_the_cell_is_refused():
    for cells in ([], [{"cell_type": "code", "source": [colab.install_cell("a")]}] * 2):
        with pytest.raises(ValueError, match="expected one"):
            colab.repaired("data/a", {"cells": cells, "metadata": {}})


@pytest.mark.parametrize("poses", [False, True])
@pytest.mark.parametrize("files", [False, True])
def test_the_cell_is_python_and_formatted(poses, files, tmp_path):
    from IPython.core.inputtransformer2 import TransformerManager

    text = colab.install_cell("data/01_video", ("app", "book"), poses, files)
    ast.parse(TransformerManager().transform_cell(text))
    cell = {
        "cell_type": "code",
        "source": text,
        "id": "0",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--check",
        "--config",
        str(ROOT / "pyproject.toml"),
        str(path),
    ]
    ran = subprocess.run(ruff, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_extras_exist():
    built = (ROOT / "setup.py").read_text()
    for line in LINES:
        for extra in line:
            assert f"{extra}_requirements" in CFG and f'"{extra}": needs("{extra}_")' in built


# --- the resolver ---


@pytest.mark.parametrize("extras", LINES, ids=",".join)
def test_resolves_on_every_python(extras):
    for python in PYTHONS:
        found = known(resolve(extras)[python])
        assert {"torch", "numpy", "fastcore", "open-clip-torch", "decord"} <= found.keys()
        assert not found.keys() & {"nbdev", "ipykernel", "jupyterlab", "notebook"}  # a reader's kernel stays


def test_constraints_hold_on_the_oldest_python():
    "A package may need a later patch of Python than a Linux distribution brings"
    held = ROOT / "constraints.txt"
    everything = needs(*(k.removesuffix("_requirements") for k in CFG if k.endswith("_requirements")))
    found = known(attempt(["--python-version", f"{PYTHONS[0]}.0", "-c", str(held)], everything))
    fixed = pins(held.read_text("utf-8"))
    assert "jupyter-book" in found and not {n: v for n, v in found.items() if fixed.get(n, v) != v}


@pytest.mark.parametrize("extras", LINES, ids=",".join)
def test_lowest_versions_resolve(extras):
    assert not [line for line in needs(*extras) if not re.search(r"[=>]=", line)], "a lower bound is missing"
    assert known(resolve(extras)["lowest"])["torch"].startswith("2.8.")


@pytest.mark.parametrize("extras", LINES, ids=",".join)
def test_nothing_loaded_is_replaced(extras):
    "Colab's list is the newest that is stored here, not necessarily today's"
    before = pins((ROOT / "tests" / "colab.txt").read_text(encoding="utf-8"))
    after = known(resolve(extras)["colab"])
    changed = {n: f"{before[n]} -> {v}" for n, v in after.items() if before.get(n, v) != v}
    assert not {n for n in changed if n in LOADED.split() or n.startswith(("nvidia-", "cuda-"))}, changed
    new = {
        n
        for n in after.keys() - before.keys()
        if n.startswith(("nvidia-", "cuda-", "jupyter", "torch", "ipy"))
    }
    assert new <= {"torchmetrics"}
    if extras == ("book",):
        assert not changed


def test_mediapipe_has_a_wheel_where_the_cell_installs_it():
    asked = [(["--no-deps", "--python-version", python], colab.MEDIAPIPE.split()) for python in PYTHONS]
    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(lambda args: attempt(*args), asked)]
    for python, answer in zip(PYTHONS, answers, strict=True):
        if tuple(map(int, python.split("."))) < colab.MEDIAPIPE_BELOW:
            assert known(answer)["mediapipe"] in colab.MEDIAPIPE
        else:
            known(answer) if isinstance(answer, NoIndex) else None
            assert "no wheels with a matching Python" in " ".join(str(answer).split())


def test_mediapipe_is_the_same_version_everywhere():
    for path in ("Makefile", "README.md", "pevl/data/extract.py"):
        said = re.findall(r"mediapipe==([\d.]+\d)", (ROOT / path).read_text(encoding="utf-8"))
        assert said and {f"mediapipe=={v}" for v in said} == {colab.MEDIAPIPE.split()[0]}, path


def test_a_conflict_fails_and_a_missing_index_does_not():
    known(attempt(["--python-version", "3.12"], ["fastcore"]))  # skips without an index
    with pytest.raises(AssertionError, match="No solution found"):
        uv(["--python-version", "3.12"], ["fastcore>=2", "fastcore<2"])
    nowhere = ["--index-url", "http://127.0.0.1:9/simple", "--no-cache", "--python-version", "3.12"]
    with pytest.raises(NoIndex):
        uv(nowhere, ["fastcore>=1.0.1"])


# --- is it enough? ---

# Colab brings these itself, as most kernels do; google.colab exists nowhere else
KERNEL = "ipython", "ipykernel", "matplotlib-inline", "ipywidgets"
BLOCK = """
import sys
from importlib.machinery import PathFinder
blocked, find = set({blocked!r}), PathFinder.find_spec
PathFinder.find_spec = lambda name, *a, **k: None if name.split(".")[0] in blocked else find(name, *a, **k)
for where, statement in {statements!r}:
    try:
        exec(statement, {{}})
    except Exception as e:
        print(f"{{where}}: {{statement}}: {{type(e).__name__}}: {{e}}")
"""


@functools.cache
def out_of_reach(extras, poses):
    "What can be imported here, and could not after the installation on Colab"
    allowed = {*constraints.closure([*needs(*extras), *KERNEL]), CFG["lib_name"]}
    allowed |= {"mediapipe", "flatbuffers", "attrs"} if poses else set()  # Colab has attrs
    return {n for n, d in packages_distributions().items() if not allowed & {*map(constraints.canonical, d)}}


def statements(name):
    "(import name, statement) of what a notebook imports when it runs"
    found = (pair for source in colab.code_of(BOOKS[name]) for pair in colab.imports(source))
    return [(n, s) for n, s in found if s and n != "google"]


@pytest.mark.parametrize("name", BOOKS)
def test_every_import_is_installed(name):
    away = out_of_reach(WANTS[name]["extras"], WANTS[name]["poses"])
    assert not [s for n, s in statements(name) if n in away]


def test_the_imports_work_with_the_least():
    "All import statements of the notebooks with the shortest line, and the rest of this environment hidden"
    todo = {s: name for name in BOOKS if WANTS[name]["extras"] == ("book",) for _, s in statements(name)}
    code = BLOCK.format(blocked=out_of_reach(("book",), True), statements=[(n, s) for s, n in todo.items()])
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert not ran.stdout.strip(), ran.stdout


def test_the_blocker_blocks():
    code = BLOCK.format(blocked={"nbdev"}, statements=[("here", "import nbdev"), ("there", "import json")])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.startswith("here: import nbdev: ModuleNotFoundError") and "there" not in ran.stdout
