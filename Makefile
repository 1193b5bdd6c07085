# make demo: the main job, from nothing to a page.   make test: all tests.   make lint: style and types.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-fast lint examples bench clean setup

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[eval,report,dev]'
	@touch $@

demo: setup
	$(BIN)/inverselm demo --output_dir demo-out --overwrite True

# one thread a process, one process a core: small models train fastest so
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

examples: setup
	$(BIN)/python examples/iqlearn_from_scratch.py
	$(BIN)/python examples/dense_path_from_scratch.py

# about 20 minutes on two idle cores
bench: setup
	for name in head step scoring growth; do $(BIN)/python benchmarks/$$name.py --json $$name.json || exit 1; done

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
