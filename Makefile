# make demo   compare the methods on data that ships with scikit-learn (core dependencies only)
# make test   everything that continuous integration runs
# make stubs    the public names of the package, for type checkers, from the modules' __all__
# make recipes   two steps of every published experiment; takes long
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint recipes stubs
.DEFAULT_GOAL := demo

demo: $(VENV)/core.stamp
	$(BIN)/localprop compare

test: lint
	$(BIN)/pytest -n 2

recipes: $(VENV)/dev.stamp
	LOCALPROP_EVERY_RECIPE=1 $(BIN)/pytest -n 2 tests/experiments/test_steps.py

stubs: $(VENV)/dev.stamp
	$(BIN)/python scripts/write_stubs.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The stamps are newer than pyproject.toml until it changes, so nothing is installed twice.
$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "localprop needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; } # half an environment would pass for a whole one
