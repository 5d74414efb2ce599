"""The README's own example runs, as it stands there."""

import os
import re
import subprocess
import sys

import results
from settings import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_first_lines_are_the_two_commands():
    assert re.match(r"```sh\nmake demo .*\nmake test .*\n```\n", README)


def test_python_example(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = re.findall(r"^\S+\.mp4  [01]\.\d\d  \S.*$", ran.stdout, re.M)
    assert len(lines) == 6, ran.stdout


def test_make_targets_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.M))
    assert named and all(re.search(rf"^{a or b}:", makefile, re.M) for a, b in named)


def test_results_are_those_that_were_measured():
    for name in results.BLOCKS:
        assert results.block(name) in README, "python tools/results.py write"
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert linked and not [name for name in linked if not (ROOT / name).exists()]
