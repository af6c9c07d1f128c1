# The project's commands. `make demo` and `make test` are all a newcomer needs: they make the environment
# themselves, and a second run starts at once. `make help` lists the rest.
#
# Variables: PYTHON=interpreter to build the environment with · DEMO_ARGS=options for the demonstration ·
# SEEDS=how many simulator seeds `make sim` runs · COVERAGE_MIN=lowest accepted coverage of the core, in percent.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
DEMO_ARGS ?=
ATTACK_ARGS ?=
PYTEST_ARGS ?=
LOCK_ARGS ?=
SEEDS ?= 2000
COVERAGE_MIN ?= 85

# Tests are shared out over all processors; a module of tests with real hosts stays together, as its hosts do. Each
# process imports all that it looks into, which takes half a minute for the whole, so none looks where it finds nothing.
SHARED_OUT := --numprocesses auto --dist worksteal
CORE_TESTS := tests/core tests/vectors
SIMULATION_TESTS := tests/simulation
HOSTS_SHARED_OUT := --numprocesses auto --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
LOCK_STAMP := $(VENV)/.installed-lock
RUN_STAMP := $(VENV)/.installed-project
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
# Where there is room, tests write into memory: what they kill is a process, and nothing has to outlive the machine.
PYTEST = $(addprefix TMPDIR=,$(shell scripts/memory-folder)) $(BIN)/pytest
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
COMPILE_MORE := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host
COMPILE := $(COMPILE_MORE) --build-deps-for=editable

.PHONY: help demo test environment checks lint format types contracts unit network sim simulation attack bench lock \
	clean fresh-clone-check docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(RUN_STAMP) ## set everything up, then run a mesh of real processes that does real work
	$(BIN)/converge-node demo $(DEMO_ARGS)

test: checks unit network simulation ## set everything up, then run every check and every test

environment: $(DEV_STAMP) ## make .venv with all that the targets below need

# Stamps, so that a second run starts at once: the locked packages, the project itself, the tools of developers.
# A demonstration does not wait for the last. The project is installed again when pyproject.toml changes, because its
# entry points are written then; hatchling is in the lock, so that the build fetches nothing that is not pinned. Of the
# tools, thousands of files are never imported, so none is compiled before it is.
$(LOCK_STAMP): requirements/base.txt scripts/find-python scripts/system-packages
	@interpreter=$$(scripts/find-python '$(PYTHON)'); \
	scripts/system-packages "$$interpreter"; \
	echo "making $(VENV) with $$interpreter"; \
	"$$interpreter" -m venv $(VENV)
	$(PIP) install --quiet --requirement requirements/base.txt
	@touch $@

$(RUN_STAMP): $(LOCK_STAMP) pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements/dev.txt
	@scripts/system-packages $(BIN)/python tests
	$(PIP) install --quiet --no-compile --requirement requirements/dev.txt
	$(PIP) check
	@mkdir -p $(VENV)/typing && ln -sfn "$$($(BIN)/python -c 'import os, trio; print(os.path.dirname(trio.__file__))')" $(VENV)/typing/trio
	@touch $@

# What makes the site takes half a minute to install, so only `make docs` does.
$(DOCS_STAMP): $(RUN_STAMP) requirements/docs.txt
	$(PIP) install --quiet --requirement requirements/docs.txt
	$(PIP) check
	@touch $@

checks: $(DEV_STAMP) ## lint, types and contracts, side by side
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target lint types contracts

lint: $(DEV_STAMP) ## style of the code and its format (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP) ## mypy, strict
	$(BIN)/mypy

contracts: $(DEV_STAMP) ## who may import whom (import-linter)
	$(BIN)/lint-imports --no-logo

unit: $(DEV_STAMP) ## tests without a network; the core's own ones with its coverage, which slows them down
	$(PYTEST) $(SHARED_OUT) -m "not network and not simulation" $(CORE_TESTS) --cov --cov-report=term \
		--cov-fail-under=$(COVERAGE_MIN) $(PYTEST_ARGS)
	$(PYTEST) $(SHARED_OUT) -m "not network and not simulation" $(CORE_TESTS:%=--ignore=%) $(PYTEST_ARGS)

network: $(DEV_STAMP) ## tests with real libp2p hosts
	@test "$$(id -u)" -eq 0 || echo "not root: the tests that make network namespaces are left out"
	$(PYTEST) $(HOSTS_SHARED_OUT) -m "network$$(test "$$(id -u)" -eq 0 || echo ' and not namespaces')" \
		$(addprefix --ignore=,$(CORE_TESTS) $(SIMULATION_TESTS)) $(PYTEST_ARGS)

simulation: $(DEV_STAMP) ## the simulator's fixed seeds and its own ablation tests
	$(PYTEST) $(SHARED_OUT) -m simulation $(SIMULATION_TESTS) $(PYTEST_ARGS)

sim: $(RUN_STAMP) ## many simulator seeds: make sim SEEDS=2000
	$(BIN)/python -m converge_p2p.testing.sim --seeds $(SEEDS)

attack: $(RUN_STAMP) ## attack three real nodes in every way we know: make attack ATTACK_ARGS="--rounds 3"
	$(BIN)/python tests/network/attack.py $(ATTACK_ARGS)

bench: $(RUN_STAMP) ## the measurements behind docs/benchmarks.md
	@for script in tests/benchmarks/bench_*.py; do echo "--- $$script"; $(BIN)/python "$$script"; done

lock: $(DEV_STAMP) ## compile the lock files again from pyproject.toml; add LOCK_ARGS=--upgrade for newer versions
	$(COMPILE) $(LOCK_ARGS) --output-file requirements/base.txt pyproject.toml
	$(COMPILE) $(LOCK_ARGS) --extra dev --constraint requirements/base.txt --output-file requirements/dev.txt \
		pyproject.toml
	$(COMPILE_MORE) $(LOCK_ARGS) --constraint requirements/base.txt --constraint requirements/dev.txt \
		--output-file requirements/docs.txt requirements/docs.in

docs: $(DOCS_STAMP) ## build the documentation site into site/, and look that nothing in it leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python scripts/check-site site

clean: ## remove the environment and everything that was generated
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* \
		dist build site
	find converge_p2p node tests -name __pycache__ -type d -prune -exec rm -rf {} +

fresh-clone-check: ## clone the last commit elsewhere and run the README's commands there
	scripts/fresh-clone-check
