"""The wheel: complete, and usable without the tools that build the book."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from settings import ROOT, settings

LIB = settings()["lib_path"]
CODE = """
import importlib, pathlib, pkgutil, sys
for name in ("nbdev", "fastcore", "execnb", "IPython", "ipykernel", "ipywidgets", "pytest", "jupytext", "nbformat"):
    sys.modules[name] = None                       # importing it fails
where = pathlib.Path(sys.argv[1]).resolve()
sys.path.insert(0, str(where))
import pevl
assert pathlib.Path(pevl.__file__).resolve().is_relative_to(where), pevl.__file__
names = [m.name for m in pkgutil.walk_packages(pevl.__path__, "pevl.") if not m.name.endswith("._modidx")]
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).resolve().is_relative_to(where), module.__file__
assert "matplotlib.pyplot" not in sys.modules, "matplotlib is for figures: import it inside the function that draws"
print(len(names), pevl.__version__, *pevl.list_models())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from the source distribution, so a file that MANIFEST.in forgets is missed here"
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    source.mkdir()
    for name in (
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / LIB, source / LIB, ignore=shutil.ignore_patterns("__pycache__"))
    cmd = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp / "dist"), str(source)]
    built = subprocess.run(cmd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next((tmp / "dist").glob("*.whl"))


def test_wheel_is_complete(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / LIB).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert not wanted - inside
    assert not [n for n in inside if not n.startswith((f"{LIB}/", f"{LIB}-"))]
    assert any(n.endswith("LICENSE") for n in inside)
    assert [n for n in inside if n.startswith(f"{LIB}/weights/")], "no weights"


def test_wheel_imports_without_nbdev(wheel, tmp_path):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run(
        [*pip, "--target", str(tmp_path / "site"), str(wheel)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    cmd = [sys.executable, "-P", "-c", CODE, str(tmp_path / "site")]
    ran = subprocess.run(cmd, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    number, version, *models = ran.stdout.split()
    assert int(number) > 10 and version == settings()["version"] and "pevl_nano" in models


def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    text = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    assert f"\nVersion: {settings()['version']}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert (
        "Requires-Dist: torch>=2.8" in text and 'Requires-Dist: decord>=0.6; (sys_platform == "linux"' in text
    )
    assert not [
        line
        for line in text.splitlines()
        if line.startswith("Requires-Dist: nbdev") and "extra ==" not in line
    ]
    entry = z.read(next(n for n in z.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "pevl = pevl.use.cli:main" in entry
