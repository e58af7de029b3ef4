# make demo   the whole tour on a real small model: under 8 minutes on two cores
# make test   lint, types, import contracts and the default tests: under 20 minutes on two cores
# make model        the tests on that model
# make reliability  what must never go wrong, in full, with a figure for each promise
# Each makes its own environment in .venv; nothing but Python 3.11+ and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint types unit model reliability clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

$(BIN)/python:
	@echo "== environment: $(VENV)"
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, found " + sys.version'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: the CPU build where the index offers one, so that nothing pulls a CUDA build over it.
$(VENV)/.torch: $(BIN)/python constraints.txt
	@echo "== install: torch"
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "== install: quantkit and what it runs on (about a minute)"
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "== install: quantkit with its test tools (about a minute)"
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/quantkit demo

test: lint types unit

lint: $(VENV)/.dev
	@echo "== lint, format, import contracts"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	@echo "== types"
	$(BIN)/mypy

# One thread a worker: two workers with two threads each wait for one another.
unit: $(VENV)/.dev
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=15

model: $(VENV)/.dev
	@echo "== tests on the real model"
	$(BIN)/python -m pytest -m model --durations=10

# What must never go wrong, in full and with a figure for each promise (the default tests run a short form).
reliability: $(VENV)/.dev
	@echo "== reliability: R1 to R14"
	QUANTKIT_RELIABILITY=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability -n 2 -m "not gpu"

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
