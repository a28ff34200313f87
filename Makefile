# Every target does its own set-up: the first one makes .venv with exactly the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
BENCH ?= demo

.PHONY: install test check demo bench architectures
.DEFAULT_GOAL := install

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bothways needs Python 3.11 or newer; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks readme --check

demo: install
	$(BIN)/bothways demo

# The page appears whole or not at all; a silent failure leaves the old one and says which.
architectures: install
	$(BIN)/bothways architectures --markdown > docs/architectures.md.new || (rm -f docs/architectures.md.new; exit 1)
	mv docs/architectures.md.new docs/architectures.md

bench: install
	$(BIN)/python -m benchmarks $(BENCH) --json benchmarks/results/$(BENCH).json
