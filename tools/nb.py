"""Everything that is done to notebooks.

python tools/nb.py run nbs/data/01_video.ipynb ...      execute in place, keep the outputs of `gpu` and `slow` cells, clean
python tools/nb.py export [NOTEBOOK ...]                notebooks -> pevl/
python tools/nb.py text NOTEBOOK [FILE.py]              a text of `# %%` cells, for editors and reviews
python tools/nb.py update FILE.py NOTEBOOK              that text back into the notebook; unchanged cells keep outputs and ids
python tools/nb.py check                                package in step with notebooks, notebooks clean, no path of this machine
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from settings import ROOT, notebooks, settings

KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")


class NotebookError(Exception):
    "A cell failed; the text names notebook and cell"


def directives(source):
    "The leading `#| name: value` lines of a cell as a dict"
    found = {}
    for line in source.splitlines():
        m = DIRECTIVE.match(line)
        if not m:
            break
        found[m[1]] = m[2]
    return found


def skipped(source, flags):
    "True for a cell that the tests do not run"
    d = directives(source)
    return bool(flags & d.keys()) or d.get("eval", "").lower() == "false"


# --- executing ---


def execute(path, flags=None, timeout=600):
    "Run the notebook at `path` in its own kernel and folder; returns it with new outputs, or raises NotebookError"
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    path = Path(path).resolve()
    flags = set(settings()["tst_flags"].split()) if flags is None else set(flags)
    nb, kept, at = nbformat.read(path, 4), {}, [0]
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "code" and skipped(cell.source, flags):
            kept[i] = list(cell.metadata.get("tags", []))
            cell.metadata["tags"] = [*kept[i], "skip-execution"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "IPYTHONDIR": tmp,  # no start-up files of the user, no history
            "JUPYTER_PREFER_ENV_PATH": "1",
            "COLUMNS": "100",
        }
        transport = "ipc" if os.name == "posix" else "tcp"
        client = NotebookClient(
            nb,
            # files instead of ports: parallel tests cannot take each other's, and nobody else on the machine can listen
            config=Config(
                {"KernelManager": {"transport": transport, "connection_file": str(Path(tmp, "kernel.json"))}}
            ),
            kernel_name="python3",
            timeout=timeout,
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_start=lambda cell, cell_index: at.__setitem__(0, cell_index),
        )
        try:
            client.execute(env=env)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
            cell = nb.cells[at[0]]
            why = {
                "CellTimeoutError": f"took longer than {timeout} s",
                "DeadKernelError": "killed its kernel",
            }.get(type(e).__name__)
            why = why or f"raised {e.ename}: {e.evalue}"
            shown = (
                "" if why.startswith(("took", "killed")) else "\n" + re.sub(r"\x1b\[[\d;]*m", "", e.traceback)
            )
            name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
            raise NotebookError(
                f"{name}: cell {at[0]} (id {cell.get('id')}) {why}\n{cell.source}{shown}"
            ) from None
    for i, tags in kept.items():
        nb.cells[i].metadata["tags"] = tags
        if not tags:
            del nb.cells[i].metadata["tags"]
    return nb


def machine_paths(nb):
    "Paths of this machine in outputs: (cell number, path)"
    bad = {
        str(ROOT),
        f"{Path.home()}/",
        tempfile.gettempdir().rstrip("/") + "/",
        *(f"/{name}/" for name in ("tmp", "home", "root")),
    }
    for i, cell in enumerate(nb.cells):
        text = str(
            [
                {**o, "data": {k: v for k, v in o.get("data", {}).items() if k.startswith("text")}}
                for o in cell.get("outputs", [])
            ]
        )
        yield from ((i, b) for b in sorted(bad) if len(b) > 1 and b in text)


def stable_ids(nb, name):
    "Give every cell without a proper id one that depends on its text alone"
    seen = set()
    for cell in nb.cells:
        salt = 0
        while not re.fullmatch(r"[0-9a-f]{8}", cell.get("id", "")) or cell["id"] in seen:
            cell["id"] = hashlib.sha1(f"{name}|{cell.source}|{salt}".encode()).hexdigest()[:8]
            salt += 1
        seen.add(cell["id"])


def cleaned(text):
    "The notebook `text` as nbdev_clean would store it"
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb

    cfg, nb = settings(), dict2nb(json.loads(text))
    clean_nb(nb, False, cfg["allowed_metadata_keys"].split(), cfg["allowed_cell_metadata_keys"].split())
    return nb2str(nb)


def save(nb, path):
    "Clean, validate and write"
    stable_ids(nb, path.name)
    nb.metadata["kernelspec"] = KERNEL
    nb.nbformat, nb.nbformat_minor = 4, 5
    nbformat.validate(nb)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cleaned(nbformat.writes(nb)), encoding="utf-8")


# --- commands ---


def run(*paths):
    for path in map(Path, paths):
        nb = execute(path)
        for i, bad in machine_paths(nb):
            sys.exit(
                f"{path}: an output of cell {i} contains {bad}; print names, not paths. The notebook was not changed"
            )
        save(nb, path)
        print(f"ran {path} ({path.stat().st_size // 1024} kB)")


def text(path, out=None):
    import jupytext

    body = jupytext.writes(nbformat.read(path, 4), fmt="py:percent")
    Path(out).write_text(body, encoding="utf-8") if out else print(body, end="")


def update(source, path):
    import jupytext

    new, path, old = jupytext.read(source, fmt="py:percent"), Path(path), {}
    if path.exists():
        for cell in nbformat.read(path, 4).cells:
            old.setdefault((cell.cell_type, cell.source.strip()), []).append(cell)
    for i, cell in enumerate(new.cells):
        same = old.get((cell.cell_type, cell.source.strip()))
        if same:
            new.cells[i] = same.pop(0)
        else:
            cell["id"] = ""
    save(new, path)
    print(f"wrote {path}")


def export(*paths, root=ROOT):
    "Run nbdev's export in a process of its own: nbdev remembers the first settings.ini that it sees"
    code = "import sys; from nbdev.doclinks import nbdev_export; from pathlib import Path; import os\n"
    code += "for p in sys.argv[1:] or [None]: nbdev_export.__wrapped__(path=p)"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], cwd=root, env=env, check=True)


def out_of_step():
    "Lines that say how pevl/ differs from what the notebooks export; works on a copy, so nothing changes"
    cfg = settings()
    nbs, lib = cfg["nbs_path"], cfg["lib_path"]
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp, "copy")
        (copy / lib).mkdir(parents=True)
        shutil.copy(ROOT / "settings.ini", copy)
        for path in [*notebooks(), *(ROOT / lib).rglob("__init__.py")]:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (copy / nbs).mkdir(exist_ok=True)
        export(root=copy)
        fresh = {p.relative_to(copy): p.read_text(encoding="utf-8") for p in (copy / lib).rglob("*.py")}
    here = {p.relative_to(ROOT): p.read_text(encoding="utf-8") for p in (ROOT / lib).rglob("*.py")}
    for p in sorted(fresh.keys() | here.keys()):
        if p not in here:
            yield f"{p}: missing, a notebook exports it"
        elif p not in fresh:
            yield f"{p}: no notebook exports it"
        elif fresh[p] != here[p]:
            a, b = here[p].splitlines(), fresh[p].splitlines()
            line = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
            )
            yield f"{p}:{line + 1}: differs from its notebook"


def check():
    "Exit status 1 and one line for each fault"
    faults = [f"{line} (make export)" for line in out_of_step()]
    for path in notebooks():
        name, stored = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        nb = nbformat.reads(stored, 4)
        ids = [cell.get("id", "") for cell in nb.cells]
        if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[0-9a-f]{8}", i) for i in ids):
            faults.append(f"{name}: cell ids are missing, doubled or not eight hex digits (tools/nb.py run)")
        elif cleaned(stored) != stored:
            faults.append(f"{name}: not clean (nbdev_clean)")
        faults += [f"{name}: an output of cell {i} contains {bad}" for i, bad in machine_paths(nb)]
    for line in faults:
        print(line)
    if faults:
        sys.exit(1)
    print(f"{len(notebooks())} notebooks are clean and in step with {settings()['lib_path']}/")


def main(argv):
    commands = {"run": run, "export": export, "text": text, "update": update, "check": check}
    if not argv or argv[0] not in commands:
        sys.exit(__doc__)
    try:
        commands[argv[0]](*argv[1:])
    except (NotebookError, FileNotFoundError) as e:
        sys.exit(str(e))
    except TypeError as e:
        sys.exit(__doc__ if "positional argument" in str(e) else str(e))


if __name__ == "__main__":
    main(sys.argv[1:])
