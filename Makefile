# Everything happens in .venv; the versions are those of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test test-ci test-slow torture audit smoke check format bench wheel constraints clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the pinned versions into it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY) ## layer-wise SAM on real data, a minute
	$(BIN)/python -m sam_repro optimizer=layerwise k=4

test: $(READY) ## the tests, a few minutes
	$(BIN)/python -m pytest -n 2

test-ci: $(READY) ## the tests that are too long for every day and short enough for every change
	$(BIN)/python -m pytest -n 2 -m long

test-slow: $(READY) ## the tests that take longer, among them a wheel in an empty environment
	$(BIN)/python -m pytest -m slow

torture: $(READY) ## kills, damage, full disks, two writers: what is lost by them, a quarter of an hour
	$(BIN)/python -m tests.torture

smoke: $(READY) ## every experiment of the papers, a few steps each on the data that is at hand, ten minutes
	$(BIN)/python -m pytest -m 'slow or not slow' tests/test_recipes.py -k trains

audit: $(READY) ## known vulnerabilities of the pinned versions; fails where the service cannot be reached
	$(BIN)/uv tool run pip-audit==2.10.1 --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

check: $(READY) ## formatter, linter and type checker, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## every method's step beside SGD's and others', into results/bench/, ten minutes on an idle machine
	$(BIN)/python -m sam_repro.measure.bench model=resnet20 steps=20
	$(BIN)/python -m sam_repro.measure.bench model=wrn16_2 steps=10

wheel: $(READY) ## build dist/*.whl
	$(BIN)/python -m hatchling build -t wheel

constraints: $(READY) ## bring constraints.txt up to date
	$(BIN)/uv pip compile --quiet --all-extras --universal --python-version 3.11 --no-header --no-annotate \
	    --no-emit-index-url --upgrade pyproject.toml --output-file constraints.txt

clean: ## remove what was built, but no runs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
