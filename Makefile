# Every target does its own set-up: a virtual environment in .venv, with what the target needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo gallery test test-all check bench docs clean

demo: .venv/run
	$(BIN)/python -m opsin.demo

gallery: .venv/run
	$(BIN)/opsin gallery -o gallery

test: .venv/test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-all: .venv/test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "thorough or not thorough"

check: .venv/check
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python docs/build.py --check

bench: .venv/bench
	$(BIN)/python benchmarks/attribution.py
	$(BIN)/python benchmarks/climbing.py
	$(BIN)/python benchmarks/cooccurrence.py
	$(BIN)/python benchmarks/scanning.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/textures.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/digits.py

docs: .venv/docs
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv

.venv/made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Opsin needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/run: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[all]'
	touch $@

.venv/test: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

.venv/check: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[test,check]'
	touch $@

.venv/docs: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

.venv/bench: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	touch $@
