"""Every notebook is one test: it runs from top to bottom in a kernel of its own."""

import pytest

import nb
from settings import ROOT, notebooks


@pytest.mark.parametrize(
    "path", notebooks(), ids=lambda p: p.relative_to(ROOT / "nbs").with_suffix("").as_posix()
)
def test_notebook(path):
    try:
        nb.execute(path, timeout=300)
    except nb.NotebookError as e:
        pytest.fail(str(e), pytrace=False)


def test_a_failing_cell_is_named(tmp_path):
    "The runner itself: it must fail, and say where"
    import nbformat

    cells = [
        nbformat.v4.new_code_cell(s)
        for s in ("x = 1", "#| gpu\nraise SystemError", "#| eval: false\nraise SystemError", "assert x == 2")
    ]
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(nb.NotebookError, match=r"wrong\.ipynb: cell 3 .*AssertionError"):
        nb.execute(path)


def test_a_slow_cell_is_named(tmp_path):
    import nbformat

    path = tmp_path / "slow.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time; time.sleep(60)")]), path
    )
    with pytest.raises(nb.NotebookError, match=r"slow\.ipynb: cell 0 .*longer than 2 s"):
        nb.execute(path, timeout=2)
