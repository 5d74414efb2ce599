"""The README's own example runs, as it stands there."""

import os
import re
import shlex
import subprocess
import sys

import results
from settings import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_first_lines_are_the_two_commands():
    assert re.match(r"```sh\nmake demo .*\nmake test .*\n```\n", README)


def test_python_and_shell_examples(tmp_path):
    "The shell lines go on with the clips that the Python example made"
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    how = dict(cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    ran = subprocess.run([sys.executable, "example.py"], **how)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(re.findall(r"^ *\d+\.\d%  \S.*$", ran.stdout, re.M)) == 5 + 2, ran.stdout
    assert len(re.findall(r"^\S+\.mp4 \S.* [01]\.\d\d$", ran.stdout, re.M)) == 8, ran.stdout
    shell = next(b for b in re.findall(r"```sh\n(.*?)```", README, re.S) if "--overlay" in b)
    for line in shell.strip().splitlines():
        args = shlex.split(line)
        assert args[0] == "pevl"
        ran = subprocess.run([sys.executable, "-m", "pevl.use.cli", *args[1:]], **how)
        assert ran.returncode == 0, f"{line}\n{ran.stderr[-3000:]}"
    assert all((tmp_path / name).exists() for name in ("look.mp4", "features.safetensors", "my-model"))


def test_make_targets_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.M))
    assert named and all(re.search(rf"^{a or b}:", makefile, re.M) for a, b in named)


def test_results_are_those_that_were_measured():
    for name in results.BLOCKS:
        assert results.block(name) in README, "python tools/results.py write"
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert linked and not [name for name in linked if not (ROOT / name).exists()]
