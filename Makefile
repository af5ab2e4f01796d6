# The project's commands. `make help` lists them.
# What they need besides Python is installed by the targets themselves: Debian packages (root), two virtual environments.

SHELL := /bin/bash -o pipefail
PYTHON ?= python3.11
VENV := .venv
ENGINE_VENV := .venv-engine
UV := $(VENV)/bin/uv

.DEFAULT_GOAL := help
.PHONY: help demo test unit transport transport-faults transport-others lab bench faults qa check lock host-packages clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.done host-packages ## boot a master and two workers here, compute a hazard curve on them (SCALE=1: workers come and go by the alarms)
	$(VENV)/bin/python -m lab demo $(if $(SCALE),--scale)

test: unit transport lab ## all three tiers of tests

unit: $(VENV)/.done ## the program under mocks: seconds, no root
	$(VENV)/bin/python -m pytest tests/unit

transport: $(VENV)/.done $(ENGINE_VENV)/.done host-packages ## oq_celery against a real RabbitMQ
	@$(MAKE) --no-print-directory --jobs=2 transport-faults transport-others

# Side by side, each with a RabbitMQ of its own, since they wait more than they compute. The filter outlives a Ctrl-C.
transport-faults: TESTS := tests/transport/test_faults.py
transport-others: TESTS := tests/transport --ignore=tests/transport/test_faults.py
transport-faults transport-others: $(VENV)/.done $(ENGINE_VENV)/.done
	@exec $(VENV)/bin/python -m pytest --verbose $(TESTS) &> >(trap '' INT TERM; exec sed --unbuffered 's/^/$@: /')

lab: $(VENV)/.done host-packages ## real boots on this machine: needs root
	$(VENV)/bin/python -m pytest tests/lab

bench: $(VENV)/.done $(ENGINE_VENV)/.done host-packages ## measure it against the engine's own modes: half an hour, on a quiet machine
	$(VENV)/bin/python -m benchmarks

faults: $(VENV)/.done host-packages ## jobs in which workers die, leave and come: writes docs/faults.md
	$(VENV)/bin/python -m lab faults

qa: $(VENV)/.done host-packages ## the engine's own jobs on the cluster and with one process: writes docs/qa.md (QA=classical: some)
	$(VENV)/bin/python -m lab qa $(QA)

check: $(VENV)/.done ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock: $(VENV)/.done ## write the hash-locked requirements anew from the .in files
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements.in -o requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements-dev.in -o requirements-dev.txt

# Debian packages of the lab and the transport tests; without root the tiers that need them say so and are skipped.
host-packages:
	@lab/install-host-packages

$(VENV)/.done: requirements-dev.txt
	@$(PYTHON) -c "import ensurepip" || { echo "needs $(PYTHON) with its venv module (Debian: python3-venv);" \
		"another Python, 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r engine/bootstrap.txt
	$(UV) pip sync --quiet --python $(VENV)/bin/python --require-hashes requirements-dev.txt
	@touch $@

$(ENGINE_VENV)/.done: $(VENV)/.done engine/requirements.txt engine/pyproject.toml $(wildcard engine/oq_celery/*)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENGINE_VENV)
	$(UV) pip sync --quiet --compile-bytecode --python $(ENGINE_VENV)/bin/python --require-hashes engine/requirements.txt
	$(UV) pip install --quiet --compile-bytecode --python $(ENGINE_VENV)/bin/python --no-build-isolation --no-deps --offline ./engine
	@echo "numba compiles the engine's functions, once: a minute or two"
	$(ENGINE_VENV)/bin/python -c "import openquake.commands.engine; from openquake.calculators import *"
	@touch $@

clean: ## remove what the commands above made, and the lab's cache
	rm -rf $(VENV) $(ENGINE_VENV) .cache out
