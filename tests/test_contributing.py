"""The page for contributors: what it names exists, and its worked example works."""

import os
import re
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest

import nb
from settings import ROOT, settings

PAGE = ROOT / "nbs" / "reference" / "06_contributing.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = (
    "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.S)) + "\n" + "\n".join(re.findall(r"`([^`\n]+)`", TEXT))
)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)", COMMANDS, re.M))
    assert named >= {"lint", "test", "book"} and all(re.search(rf"^{t}:", makefile, re.M) for t in named)


def test_files_exist():
    named = set(re.findall(r"\b((?:nbs|tools|tests|pevl)/[\w/.]+\.(?:ipynb|py|toml|txt|yml))\b", COMMANDS))
    assert len(named) > 12 and not [n for n in named if not (ROOT / n).exists()]
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT)
    assert linked and not [n for n in linked if not (PAGE.parent / n).exists()]


def test_commands_of_the_tools_exist():
    for tool, command in set(re.findall(r"tools/(\w+)\.py (--?\w+|\w+)", COMMANDS)):
        source = (ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8")
        assert re.search(rf"""["']{command}["']|\b{command}=""", source), f"tools/{tool}.py {command}"


def test_the_address_is_that_of_settings():
    assert f"git clone {settings()['git_url']}\n" in COMMANDS


def steps():
    "notebook -> [(old, new), ...] of the worked example"
    found = {}
    for name, body in re.findall(r"```diff\n(\S+)\n(.*?)```", TEXT, re.S):
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", body, re.M):
            pair = ("\n".join(line[1:] for line in lines.splitlines()) for lines in (old, new))
            found.setdefault(name, []).append(tuple(pair))
    return found


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    "A copy of the project with the lines of the example changed and exported"
    root = tmp_path_factory.mktemp("contributing") / "pevl"
    (root / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", root)
    shutil.copytree(ROOT / "pevl", root / "pevl", ignore=shutil.ignore_patterns("__pycache__"))
    for name, pairs in steps().items():
        text = jupytext.writes(nbformat.read(ROOT / name, 4), fmt="py:percent")
        for old, new in pairs:
            assert old in text, f"{name} has no line {old!r}: the example of {PAGE.name} is out of date"
            text = text.replace(old, new)
        (root / name).parent.mkdir(exist_ok=True)
        (root / "step.py").write_text(text, encoding="utf-8")
        shutil.copy(ROOT / name, root / name)
        nb.update(root / "step.py", root / name)
    nb.export(*steps(), root=root)
    return root


def test_worked_example(changed):
    assert set(steps()) == {f"nbs/model/{n}.ipynb" for n in ("04_mask", "07_pevl", "09_variants")}
    code = """
import torch, pevl
from pevl.model.mask import pose_mask
m = pose_mask(torch.tensor([[3.0, 3.0], [20.0, 3.0]]), torch.tensor([3.0, 4.0]), (32, 32), 16, "l2")
assert torch.allclose(m, torch.tensor([0.6, 0.8, 0, 0])), m
from pevl.model.variants import variant
model = pevl.create_model("pevl_nano", **variant("readings.mask_l2"))
assert model.ucmr.norm == "l2"
print(pevl.__file__)
"""
    env = {**os.environ, "PYTHONPATH": str(changed)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=changed, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert str(changed) in ran.stdout


def test_its_cells_pass(changed):
    "The chapter of the changed equation, with the new norm in the loops of its tests"
    text = (changed / "nbs/model/04_mask.ipynb").read_text(encoding="utf-8")
    assert text.count('\\"sum\\", \\"l2\\", \\"none\\"') >= 4
    book = nbformat.read(changed / "nbs/model/04_mask.ipynb", 4)
    names = "def slow_mask", "def pose_mask", "slow_mask(k, w, size, p, norm)"
    cells = [c.source for c in book.cells if c.cell_type == "code" and any(n in c.source for n in names)]
    head = "from fastcore.test import *\nimport torch\nfrom math import nan\nfrom pevl.model.mask import *\n"
    head += "from pevl.model.mask import pose_mask, wide\n"
    code = head + "\n\n".join(re.sub(r"(?m)^#\|.*\n", "", c) for c in cells)
    env = {**os.environ, "PYTHONPATH": str(changed)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=changed, env=env, capture_output=True, text=True)
    assert len(cells) == len(names) and ran.returncode == 0, ran.stderr[-2000:]
