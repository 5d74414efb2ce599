# Needs Python 3.11 or newer, git and make. All paths are relative, so a folder with a space in its name works;
# tools run as `python -m ...` because an entry-point script cannot have a space in its first line.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c constraints.txt
DECLARED := settings.ini setup.py pyproject.toml constraints.txt
# MediaPipe declares numpy<2, protobuf<5 and jax; what finds poses needs none of these, so it goes in without its dependencies
MEDIAPIPE := mediapipe==0.10.21 flatbuffers==25.12.19
JOBS ?= 2
# one thread a process: two test processes share the cores, and results do not depend on the core count
test lint book export: export OMP_NUM_THREADS ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: help demo test lint book bench export constraints clean distclean
help:
	@echo "make demo     simulate a small data set, train, evaluate; writes runs/demo/report.html"
	@echo "make test     everything that CI checks: lint, the book, the notebooks, the tests"
	@echo "make book     the book in _build/html/index.html"
	@echo "make lint     style, notebooks clean and in step with the package, links"
	@echo "make bench    time and memory of PeVL beside its baseline, in one run"
	@echo "make export   notebooks -> pevl/"
	@echo "make clean    remove what the commands above wrote (make distclean: .venv and runs too)"

demo: .venv/.run
	$(PY) -m pevl.use.cli demo --out runs/demo
	@echo "The report: runs/demo/report.html"

test: lint book
	$(PY) -m pytest -n $(JOBS) --dist worksteal

lint: .venv/.dev
	$(PY) -m ruff check pevl tests tools setup.py nbs/_ext
	$(PY) -m ruff format --check tests tools setup.py nbs
	$(PY) tools/nb.py check
	$(PY) tools/links.py --check
	$(PY) tools/colab.py check

book: .venv/.dev
	$(PY) tools/book.py

export: .venv/.dev
	$(PY) tools/nb.py export

bench: .venv/.run
	$(PY) tools/bench.py

constraints: .venv/.dev
	$(PY) tools/constraints.py

clean:
	rm -rf _build _docs _proc build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf .venv runs

# The environment: made once, refreshed when a declaration changes. The stamps are written last, so an interrupted installation is repeated.
.venv/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit("pevl needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.run: $(DECLARED) | .venv/.made
	@echo "Installing the package into .venv (the first time: a few minutes, some GB)"
	@if [ -t 1 ]; then $(PIP) -e .; else $(PIP) -qq -e .; fi
	@touch $@

.venv/.dev: $(DECLARED) | .venv/.made
	@echo "Installing the package and its developer tools into .venv (the first time: a few minutes, some GB)"
	@if [ -t 1 ]; then $(PIP) -e ".[dev]"; else $(PIP) -qq -e ".[dev]"; fi
	@$(PIP) -qq --no-deps $(MEDIAPIPE) || echo "No mediapipe for this Python (it has 3.11 and 3.12): the chapter Extract cannot run"
	@touch .venv/.run $@
