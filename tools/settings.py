"""settings.ini, read once for all tools and tests."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def settings(root=ROOT):
    "The [DEFAULT] section of settings.ini as a mapping"
    cfg = ConfigParser(delimiters=["="])
    cfg.read(Path(root, "settings.ini"), encoding="utf-8")
    return cfg["DEFAULT"]


def notebooks(root=ROOT):
    "Every notebook of the book, in reading order; build folders, checkpoints and hidden folders are left out"
    nbs = Path(root, settings(root)["nbs_path"])
    found = (p.relative_to(nbs) for p in nbs.rglob("*.ipynb"))
    return sorted(nbs / p for p in found if not any(part.startswith((".", "_")) for part in p.parts))
