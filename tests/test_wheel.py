"""The wheel: complete, and usable without the tools that build the book."""

import json
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

USE = """
import json, pathlib, socket, sys
where = pathlib.Path(sys.argv[1]).resolve()
sys.path.insert(0, str(where))

def no_network(*_, **__):
    raise OSError("no network here")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network
import torch
import pevl
from pevl.data.pose import Pose, save_pose
from pevl.data.simdive import choose_classes, make_dive, render
from pevl.data.text import dive_sentence
from pevl.data.video import write_video

assert pathlib.Path(pevl.__file__).resolve().is_relative_to(where), pevl.__file__
label = choose_classes(48)[5]
pictures, joints, _ = render(make_dive(label, 77))
write_video("clip.mp4", pictures)
save_pose("clip.npz", Pose(joints, torch.ones(joints.shape[:2]).numpy(), (128, 128), "coco17"))
found = pevl.predict("clip.mp4", [dive_sentence(l) for l in choose_classes(48)])
models = [pevl.create_model("pevl_nano", weights="simdive48"), pevl.PeVL.from_pretrained("simdive48")]
same = all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())
print(json.dumps(dict(right=found[0][0] == dive_sentence(label), labels=len(found), same=same)))
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


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    "The folder of an installation from the wheel alone"
    where = tmp_path_factory.mktemp("installed") / "site"
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
    cmd = [*pip, "--target", str(where), str(wheel)]
    subprocess.run(cmd, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return where


def run(code, site, cwd):
    "Python in a fresh folder, with the installed package in the place of the repository's"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    cmd = [sys.executable, "-P", "-c", code, str(site)]
    ran = subprocess.run(cmd, cwd=cwd, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_wheel_imports_without_nbdev(site, tmp_path):
    number, version, *models = run(CODE, site, tmp_path).split()
    assert int(number) > 10 and version == settings()["version"] and "pevl_nano" in models


def test_wheel_carries_a_model(site, tmp_path):
    "One line from a video to its label, from the wheel alone and without a network"
    weights = {p.name for p in (site / LIB / "weights").iterdir()}
    assert {"pevl_nano_simdive48.safetensors", "pevl_nano_clip.safetensors", "nano_bpe.txt.gz"} <= weights
    said = json.loads(run(USE, site, tmp_path).splitlines()[-1])
    assert said == dict(right=True, labels=5, same=True)


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
