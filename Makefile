# The one door: every target makes what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lock demo test test-slow coverage covered bench check format docs page page-check clean

setup: .venv/made

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/made: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# First everything but torch as the lock has it, each file compared with its hash: pip compares no package that is there
# already. The second line adds torch, and regard with what builds it.
.venv/made-dev: pyproject.toml constraints.txt requirements.lock | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch .venv/made $@

# Releases for development and CI, for every system and Python; torch, of which there are several builds, is in
# constraints.txt.
lock:
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.11 \
	    --constraint constraints.txt --generate-hashes --no-header --no-annotate --quiet --output-file build/all.lock
	awk '/^[A-Za-z0-9]/ {keep = !/^(torch|triton|nvidia-[^=]*|cuda-[^=]*)==/} keep' build/all.lock > requirements.lock

demo: .venv/made
	@mkdir -p demo
	@FORCE_COLOR=1 $(BIN)/regard translate "le chat noir" --grid --look demo/cat.png --look demo/cat.svg
	@echo "The heatmap is in demo/cat.png and demo/cat.svg."

# Two at a time, one thread each: twice as fast as one after the other, on two cores. In huge pages, where the kernel
# gives them: the tests of training take a tenth less.
TEST := OMP_NUM_THREADS=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"
test: .venv/made-dev
	$(TEST) $(OPTIONS)

test-slow: .venv/made-dev
	$(BIN)/pytest -m slow

# every line and branch of the heart, nearly all of what stands on it
HEART := src/regard/attention/*,src/regard/nn/*,src/regard/decoding/*
ROOMS := src/regard/training/*,src/regard/models/*,src/regard/observation/*,src/regard/pipelines/*
COUNTED := --cov=regard --cov-branch --cov-report=
coverage: .venv/made-dev
	$(TEST) $(COUNTED)
	$(MAKE) covered

# of the tests that ran last
covered:
	$(BIN)/coverage report --include "$(HEART)" --skip-covered --show-missing --fail-under 98
	$(BIN)/coverage report --include "$(ROOMS)" --skip-covered --show-missing --fail-under 95

bench: .venv/made-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/attend.py
	$(BIN)/python benchmarks/approximate.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py profile
	$(BIN)/python benchmarks/generate.py 2
	$(BIN)/python benchmarks/maps.py
	$(BIN)/python benchmarks/findings.py
	$(BIN)/python benchmarks/page.py

check: .venv/made-dev
	$(BIN)/ruff format --check src tests benchmarks examples docs/*.py
	$(BIN)/ruff check src tests benchmarks examples docs/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/words.py
	$(BIN)/python .ci/prose.py

format: .venv/made-dev
	$(BIN)/ruff check --fix src tests benchmarks examples docs/*.py
	$(BIN)/ruff format src tests benchmarks examples docs/*.py

# one thread: the course's models are small, and two threads wait for each other on a busy machine.
# What the pages gave is kept only as long as neither they nor the library change.
docs: .venv/made-dev
	@find src -type f ! -name "*.pyc" ! -path "*.egg-info*" | sort | xargs sha256sum > docs/.sources; \
	cmp -s docs/.sources docs/.jupyter_cache/sources || rm -rf docs/.jupyter_cache docs/_build; \
	mkdir -p docs/.jupyter_cache && mv docs/.sources docs/.jupyter_cache/sources
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build \
	    || { find docs/_build -name "*.err.log" -exec tail -n 40 {} +; exit 1; }

# the front end of `regard look`: what it is built into is committed, so that installing regard needs no node
frontend/node_modules: frontend/package-lock.json
	cd frontend && npm ci --no-audit --no-fund
	touch $@

page: frontend/node_modules
	cd frontend && npm run --silent check && npm test --silent && npm run --silent build

page-check: frontend/node_modules
	cd frontend && npm run --silent check && npm test --silent
	mkdir -p build && cd frontend && node build.mjs ../build && cmp ../build/look.mjs ../src/regard/figures/look.mjs

clean:
	rm -rf .venv docs/_build docs/gallery docs/jupyter_execute docs/.jupyter_cache demo
