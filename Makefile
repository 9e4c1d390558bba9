# make phase1   set up .venv and run phase 1 of the plan
# make docs     the documentation with its reference as HTML, in build/docs
# make test     set up .venv, lint, check types, run the quick tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(PIP_INDEX),--extra-index-url $(PIP_INDEX))

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install phase1 docs test test-slow lint types format bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "etrm-tune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/installed

# Options go into ARGS: make phase1 ARGS="--seeds 3"
phase1: $(VENV)/installed
	@$(BIN)/python -m etrm_tune.run phase1 $(ARGS)

test: lint types
	$(BIN)/python -m pytest -m "not slow" -q -n auto --dist worksteal

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "slow and not ray" -q -n auto --dist worksteal --durations=10
	$(BIN)/python -m pytest -m "slow and ray" -q --durations=20

docs: $(VENV)/installed
	@$(BIN)/python docs/build.py build/docs

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.overhead

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
