# The one door: every target makes what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow coverage bench check format docs clean

setup: .venv/made

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/made-dev: .venv/made
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

demo: .venv/made
	@mkdir -p demo
	@FORCE_COLOR=1 $(BIN)/regard translate "le chat noir" --grid --look demo/cat.png --look demo/cat.svg
	@echo "The heatmap is in demo/cat.png and demo/cat.svg."

# two at a time, one thread each: twice as fast as one after the other, on two cores
test: .venv/made-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/made-dev
	$(BIN)/pytest -m slow

coverage: .venv/made-dev
	$(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage report --include "src/regard/attention/*,src/regard/nn/*,src/regard/decoding/*" --show-missing --fail-under 100

bench: .venv/made-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/attend.py
	$(BIN)/python benchmarks/approximate.py
	$(BIN)/python benchmarks/maps.py

check: .venv/made-dev
	$(BIN)/ruff format --check src tests benchmarks examples docs/*.py
	$(BIN)/ruff check src tests benchmarks examples docs/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/made-dev
	$(BIN)/ruff check --fix src tests benchmarks examples docs/*.py
	$(BIN)/ruff format src tests benchmarks examples docs/*.py

# one thread: the course's models are small, and two threads wait for each other on a busy machine
docs: .venv/made-dev
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

clean:
	rm -rf .venv docs/_build docs/jupyter_execute docs/.jupyter_cache demo
