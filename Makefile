# make demo          compare the methods on data that ships with scikit-learn, and plan for a budget
# make test          lint, and the tests
# make lint          ruff and mypy
# make test-oldest   the tests with the oldest torch that pyproject.toml allows
# make coverage      the tests, and which lines they reach; slow before Python 3.12
# make bench         times of every method and how they grow, into benchmarks/results/speed.jsonl
# make bench-gpu     speed and memory of every method on a GPU, into benchmarks/results/gpu.jsonl
# make recipes       two steps of every published experiment; takes long
# make docs          the documentation as a site, in site/; a dead link fails
# make stubs         the public names of the package, for type checkers, from the modules' __all__
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest torch of pyproject.toml, and the torchvision that was released with it.
OLDEST := 'torch==2.11.*' 'torchvision==0.26.*'
OLDEST_VENV := .venv-oldest
OLDEST_BIN := $(OLDEST_VENV)/bin

.PHONY: demo test lint test-oldest coverage bench bench-gpu recipes docs stubs
.DEFAULT_GOAL := demo

demo: $(VENV)/core.stamp
	$(BIN)/localprop compare
	$(BIN)/localprop plan --model resnet20 --batch 128 --budget 100MB

test: lint
	$(BIN)/pytest -n 2

test-oldest: $(OLDEST_VENV)/dev.stamp
	$(OLDEST_BIN)/pytest -n 2

coverage: $(VENV)/dev.stamp
	COVERAGE_CORE=sysmon $(BIN)/pytest -n 2 --cov

bench: $(VENV)/core.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py benchmarks/results/speed.jsonl

bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/gpu.py benchmarks/results/gpu.jsonl

recipes: $(VENV)/dev.stamp
	LOCALPROP_EVERY_RECIPE=1 $(BIN)/pytest -n 2 tests/experiments/test_steps.py

docs: $(VENV)/dev.stamp
	$(BIN)/zensical build --clean --strict

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

$(OLDEST_VENV)/dev.stamp: pyproject.toml Makefile | $(OLDEST_BIN)/python
	$(OLDEST_BIN)/python -m pip install --quiet $(OLDEST) --editable '.[dev]'
	touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "localprop needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $* || { rm -rf $*; exit 1; } # half an environment would pass for a whole one
