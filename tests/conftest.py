import os

import pytest

from settings import ROOT

# Child processes (kernels, the command line) find the package even where the folder was moved after its installation.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root():
    return ROOT
