"""What somebody sees who has just installed the package: help(pevl), dir(pevl), an editor, and mistyped names."""

import ast
import importlib
import os
import re
import subprocess
import sys

import pytest

import pevl
from settings import ROOT

HIDDEN = "torch", "numpy", "cv2", "av", "matplotlib", "gradio"


def python(code, **env):
    env = os.environ | {"PAGER": "cat", "TERM": "dumb"} | env
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.parametrize("name", pevl.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(pevl, name)
    assert getattr(value, "__doc__", None)
    assert value is getattr(importlib.import_module(pevl._WHERE[name]), name)
    assert name in pevl.__doc__ and name in dir(pevl)


def test_no_name_is_a_folder_of_the_package():
    "Importing pevl.train would put the module in the place of the function"
    assert not [n for n in pevl.__all__ if (ROOT / "pevl" / n).exists()]


def test_names_are_the_same_for_editors():
    tree = ast.parse((ROOT / "pevl" / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    seen = {a.name: f"pevl.{n.module}" for n in block.body for a in n.names}
    assert seen == pevl._WHERE


def test_help_begins_with_what_to_do():
    shown = python("import pevl; help(pevl)")
    head = "\n".join(shown.splitlines()[:45])
    for text in ("pevl.demo(", "pevl.predict(", "pevl --help", "list_models", "simdive48", "https://"):
        assert text in head
    for name in pevl.__all__:
        assert re.search(rf"^    (class )?{name}\(", shown, re.M), f"{name} is not in help(pevl)"


def test_import_is_quick():
    code = f"import sys, pevl; dir(pevl); print([m for m in {HIDDEN!r} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_a_mistyped_name():
    with pytest.raises(AttributeError, match="has no attribute 'predicted', did you mean predict"):
        pevl.predicted  # noqa: B018
    assert not hasattr(pevl, "__wrapped__")
    assert "pevl.train" in python("import pevl.train.learner; print(pevl.train.__name__)")


def test_near_names_come_from_one_function():
    "In pevl.data.files; a module that compares names itself says so here, with its reason"
    own = {
        "data/files.py",
        "data/own_clips.py",  # decides by it whether a column is misspelt or just another one
        "model/pevl.py",
    }
    lib = ROOT / "pevl"
    found = {p.relative_to(lib).as_posix() for p in lib.rglob("*.py") if "get_close_matches" in p.read_text()}
    assert found <= own
