# sppo-ray. Two commands on a fresh machine: `make train` and `make test`. `make` alone lists the others.
# The environment (.venv) is made from requirements/cpu.lock when it is missing or the lock has changed.

PYTHON   ?= python3.11
PIP_ARGS ?=
RECIPE   ?= quickstart
SEED     ?= 1
RUN_DIR  ?= runs/$(RECIPE)-$(shell date +%Y%m%d-%H%M%S)
ARGS     ?=

VENV := .venv
PY   := $(VENV)/bin/python
ENV  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env train test test-slow test-fast test-cluster fuzz lint doctor

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(ENV) ## make or update .venv from requirements/cpu.lock

$(ENV): requirements/cpu.lock requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" requirements/install.sh $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "install: done, activate with: . $(VENV)/bin/activate"

train: $(ENV) ## train RECIPE (quickstart) with SEED (1) in RUN_DIR; ARGS="--loop.steps=20" overrides settings
	@$(PY) -m sppo_ray train $(RECIPE) --run-dir $(RUN_DIR) --seed $(SEED) $(ARGS)

test: $(ENV) ## the test suite, real Ray and vLLM included
	@$(PY) -m pytest -m "not cluster and not slow" $(ARGS)

test-slow: $(ENV) ## what takes longer: every command and algorithm on real actors, the control plane end to end
	@$(PY) -m pytest -m slow $(ARGS)

test-cluster: $(ENV) ## a Ray cluster of three hosts (network namespaces), as deploy/ starts it, and a job on it
	@$(PY) -m pytest -m cluster tests/ray $(ARGS)

test-fast: $(ENV) ## the tests that start neither Ray nor vLLM
	@$(PY) -m pytest tests/unit $(ARGS)

fuzz: $(ENV) ## 2,000 fuzzed requests against a real REST server with a Ray head
	@$(PY) -m tests.api.fuzz $(ARGS)

lint: $(ENV) ## ruff
	@$(PY) -m ruff check .

doctor: $(ENV) ## check this machine: versions, torch build, Ray, memory, limits
	@$(PY) -m sppo_ray doctor
