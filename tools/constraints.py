"""Write constraints.txt: the exact version of everything that the package and its dev extra pull in, as installed here.

make constraints        # after the tests passed with newer versions
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from settings import ROOT, settings

# torch pins its own CUDA parts; naming them would break a CPU-only or macOS installation
SKIP = re.compile(r"(nvidia|cuda)-|triton$")
HEAD = "# The exact versions that the tests ran with. Written by `make constraints`; the loose bounds stand in settings.ini.\n"


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(lines):
    "name -> version for the requirements in `lines` and all that they need on this machine"
    todo, seen, pins = [Requirement(line) for line in lines], set(), {}
    while todo:
        req = todo.pop()
        key = canonical(req.name), frozenset(req.extras)
        if key in seen or SKIP.match(key[0]) or not _applies(req, [""]):
            continue
        seen.add(key)
        try:
            dist = distribution(req.name)
        except PackageNotFoundError:
            sys.exit(
                f"{req.name} is not installed: run make constraints in the environment that passed the tests"
            )
        pins[key[0]] = dist.version.split("+")[0]  # a local suffix such as +cpu cannot be resolved elsewhere
        todo += [sub for sub in map(Requirement, dist.requires or []) if _applies(sub, req.extras or [""])]
    return pins


def _applies(req, extras):
    return req.marker is None or any(req.marker.evaluate({"extra": extra}) for extra in {*extras, ""})


def main():
    cfg = settings()
    lines = [
        line for key in ("", "nb_", "dev_") for line in cfg[f"{key}requirements"].splitlines() if line.strip()
    ]
    pins = closure(lines)
    out = Path(ROOT, "constraints.txt")
    out.write_text(HEAD + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)), encoding="utf-8")
    print(f"{out.name}: {len(pins)} versions")


if __name__ == "__main__":
    main()
