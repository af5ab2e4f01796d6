# The project's commands. `make help` lists them.
# What they need besides Python is installed by the targets themselves: Debian packages (root), two virtual environments.

SHELL := /bin/bash -o pipefail
PYTHON ?= python3.11
VENV := .venv
ENGINE_VENV := .venv-engine
UV := $(VENV)/bin/uv

# Some machines set it, and each of a thousand processes would compile the modules that it imports anew: those of
# pulumi_aws take two seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test unit engine pulumi-cli policy-pack transport explore lab lab-cache vm vm-short bench faults qa docs check audit lock host-packages browser pictures clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.done host-packages ## boot a master and two workers here, compute a hazard curve on them (SCALE=1: workers come and go by the alarms)
	$(VENV)/bin/python -m lab demo $(if $(SCALE),--scale)

# Side by side what keeps two cores busy together. First what computes, and what the second half would wait for; then
# what waits for boots, drains and alarms half of its time, the longest first. (In one go the lab's tests, which wait for
# lab-cache, come last and are left over.) The emulated machine has one core, which it gets before the others do.
test: ## all tiers of tests, and twenty runs of the explorer of faults
	@$(SIDE_BY_SIDE) --jobs=7 unit policy-pack pulumi-cli lab-cache $(TRANSPORT_LANES)
	@$(SIDE_BY_SIDE) --jobs=7 vm-short $(LAB_LANES) engine explore

# Each line of a target that runs beside others begins with its name. The filter outlives a Ctrl-C.
SIDE_BY_SIDE = $(MAKE) --no-print-directory BESIDE_OTHERS=yes
WITH_NAME = $(if $(BESIDE_OTHERS),&> >(trap '' INT TERM; exec sed --unbuffered 's/^/$@: /'))
PYTEST := $(VENV)/bin/python -m pytest --verbose --durations=15

unit: $(VENV)/.done ## the program under mocks, oq-cluster against stand-ins: a minute, no root
	@$(VENV)/bin/python -m pytest tests/unit tests/client $(WITH_NAME)

engine: $(VENV)/.done pulumi-cli policy-pack ## the program under Pulumi's real engine, with a provider of ours: minutes, no root
	@$(VENV)/bin/python -m pytest tests/engine $(WITH_NAME)

pulumi-cli:
	@lab/region/cli/build .cache/pulumi/pulumi $(WITH_NAME)

# The policy pack's environment, which Pulumi would make itself, beside the pack.
policy-pack: policy/.venv/.done

transport: ## oq_celery against a real RabbitMQ
	@$(SIDE_BY_SIDE) --jobs=4 $(TRANSPORT_LANES)

# Each with a RabbitMQ of its own: that of the nodes, and for the faults this machine's, too, which delivers differently
# after them. A lane has the modules of a line; those that run calculations of the engine are the first three's.
TRANSPORT_LANES := transport-jobs transport-commands transport-others transport-workers transport-faults \
	$(if $(filter 0,$(shell id -u)),transport-host)
FAULTS_TESTS := tests/transport/test_faults.py
JOBS_TESTS := $(foreach name,inputs jobs qa_sample results,tests/transport/test_$(name).py)
COMMANDS_TESTS := $(foreach name,abort terminal tutorial,tests/transport/test_$(name).py)
WORKERS_TESTS := $(foreach name,alarm clock copies payloads reconnection unable worker,tests/transport/test_$(name).py)
transport-others: browser
transport-others: TESTS := tests/transport \
	$(foreach path,$(FAULTS_TESTS) $(JOBS_TESTS) $(COMMANDS_TESTS) $(WORKERS_TESTS),--ignore=$(path))
transport-jobs: TESTS := $(JOBS_TESTS)
transport-commands: TESTS := $(COMMANDS_TESTS)
transport-workers: TESTS := $(WORKERS_TESTS)
transport-faults: TESTS := $(FAULTS_TESTS)
transport-host: TESTS := --rabbitmq=host $(FAULTS_TESTS)
.PHONY: $(TRANSPORT_LANES)
$(TRANSPORT_LANES): $(VENV)/.done $(ENGINE_VENV)/.done host-packages
	@exec $(PYTEST) $(TESTS) $(WITH_NAME)

explore: $(VENV)/.done $(ENGINE_VENV)/.done host-packages ## twenty runs of the explorer of faults with fresh seeds
	@$(VENV)/bin/python -m explorer $(WITH_NAME)

lab: ## real boots on this machine: needs root
	@$(SIDE_BY_SIDE) --jobs=4 $(LAB_LANES)

# Each on labs of its own; a lane has the modules of a line.
LAB_LANES := lab-life lab-cluster lab-client lab-webui lab-others lab-sleep
lab-life: TESTS := tests/lab/test_life.py
lab-cluster: TESTS := tests/lab/test_cluster.py
lab-client: TESTS := tests/lab/test_mails.py tests/lab/test_client.py
lab-webui: TESTS := tests/lab/test_webui.py
lab-sleep: TESTS := tests/lab/test_sleep.py
lab-others: TESTS := tests/lab $(foreach name,life cluster mails client webui sleep,--ignore=tests/lab/test_$(name).py)
.PHONY: $(LAB_LANES)
lab-life: pulumi-cli
$(LAB_LANES): lab-cache
	@exec $(PYTEST) $(TESTS) $(WITH_NAME)

# What they would wait for each other with.
lab-cache: $(VENV)/.done host-packages browser
	@exec $(VENV)/bin/python -m tests.lab.prepare $(WITH_NAME)

pictures: $(VENV)/.done host-packages browser ## the pictures of docs/webui.md, by the tests of the WebUI's pages: needs root
	OQLAB_PICTURES=docs/pictures $(VENV)/bin/python -m pytest --verbose -k browser tests/lab/test_webui.py

vm: $(VENV)/.done host-packages ## nodes with Debian's own kernel, emulated: half an hour, needs root
	$(VENV)/bin/python -m pytest tests/vm

# Its nodes take the engine from the cache: an emulated processor would be long at compiling one.
vm-short: lab-cache
	@exec $(PYTEST) -m "not whole" tests/vm $(WITH_NAME)

bench: $(VENV)/.done $(ENGINE_VENV)/.done host-packages ## measure it against the engine's own modes: forty minutes, on a quiet machine
	$(VENV)/bin/python -m benchmarks

# RUNS of the explorer, LAB_RUNS on the lab; or again the run of a SEED, perhaps with some of its FAULTS (0,2) alone.
RUNS ?= 940
LAB_RUNS ?= 60
faults: $(VENV)/.done $(ENGINE_VENV)/.done host-packages ## a thousand jobs in which things break: docs/faults.md; SEED=… repeats one
ifdef SEED
	$(VENV)/bin/python -m explorer --seed $(SEED) --runs 1 --worlds 1 $(if $(FAULTS),--faults $(FAULTS))
else
	@status=0; $(VENV)/bin/python -m explorer --runs $(RUNS) --record docs/faults.json || status=1; \
		$(VENV)/bin/python -m lab faults --runs $(LAB_RUNS) || status=1; exit $$status
endif

qa: $(VENV)/.done host-packages ## the engine's own jobs on the cluster and with one process: writes docs/qa.md (QA=classical: some)
	$(VENV)/bin/python -m lab qa $(QA)

docs: $(VENV)/.done ## write the tables of README.md and docs/ anew that repeat the code
	PYTHONPATH=client $(VENV)/bin/python -m docs.tables

check: $(VENV)/.done ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# All that is installed anywhere: the program, its tests, the nodes, the policy pack, and what audits them. --strict: a
# package that could not be looked up counts as a hole, or a day without the network would pass for one without holes.
LOCKS := requirements.txt requirements-dev.txt requirements-audit.txt engine/bootstrap.txt engine/requirements.txt \
	policy/requirements.txt
audit: .cache/audit/.done ## bills of materials (CycloneDX) into out/, and known vulnerabilities in the locked packages: needs the network
	@mkdir -p out
	@for lock in $(LOCKS); do bill=out/sbom-$$(echo $${lock%.txt} | tr / -).cdx.json; \
		.cache/audit/bin/cyclonedx-py requirements --output-reproducible -o $$bill $$lock || exit 1; echo "wrote $$bill"; done
	@status=0; for lock in $(LOCKS); do echo "$$lock:"; \
		.cache/audit/bin/pip-audit --progress-spinner=off --strict --disable-pip --require-hashes --requirement $$lock || \
		status=1; done; exit $$status

lock: $(VENV)/.done ## write the hash-locked requirements anew from the .in files
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements.in -o requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements-dev.in -o requirements-dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements-audit.in -o requirements-audit.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header policy/requirements.in \
		-o policy/requirements.txt
	cd engine && ../$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --overrides overrides.txt \
		requirements.in -o requirements.txt

# Debian packages of the lab and the transport tests; without root the tiers that need them say so and are skipped.
host-packages:
	@lab/linux/install-host-packages

# The demo needs none. The lab's tests and one of the transport's do.
browser: host-packages
	@lab/linux/install-host-packages tests/lab/packages.txt

# What the engine's environment is made of.
ENGINE_SOURCES := $(filter-out %/__pycache__,engine/requirements.txt engine/pyproject.toml $(wildcard \
	engine/oq_celery/* engine/oq_fleet/* engine/oq_idle/* engine/oq_keys/* engine/oq_logs/* engine/oq_refresh/* \
	engine/oq_webui/* engine/oq_webui/templates/*/*))

# Two `make` of one clone make an environment once: the second waits for the first.
ifndef LOCKED
$(VENV)/.done: requirements-dev.txt
	@flock Makefile $(MAKE) --no-print-directory LOCKED=yes $@

$(ENGINE_VENV)/.done: $(VENV)/.done $(ENGINE_SOURCES)
	@flock Makefile $(MAKE) --no-print-directory LOCKED=yes $@

policy/.venv/.done: $(VENV)/.done policy/requirements.txt
	@flock Makefile $(MAKE) --no-print-directory LOCKED=yes $@

.cache/audit/.done: $(VENV)/.done requirements-audit.txt
	@flock Makefile $(MAKE) --no-print-directory LOCKED=yes $@
else
$(VENV)/.done: requirements-dev.txt
	@$(PYTHON) -c "import ensurepip" || { echo "needs $(PYTHON) with its venv module (Debian: python3-venv);" \
		"another Python, 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r engine/bootstrap.txt
	$(UV) pip sync --quiet --python $(VENV)/bin/python --require-hashes requirements-dev.txt
	@touch $@

$(ENGINE_VENV)/.done: $(VENV)/.done $(ENGINE_SOURCES)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENGINE_VENV)
	$(UV) pip sync --quiet --compile-bytecode --python $(ENGINE_VENV)/bin/python --require-hashes engine/requirements.txt
	$(UV) pip install --quiet --compile-bytecode --python $(ENGINE_VENV)/bin/python --no-build-isolation --no-deps --offline ./engine
	@echo "numba compiles the engine's functions, once: a minute or two"
	$(ENGINE_VENV)/bin/python -c "import openquake.commands.engine; from openquake.calculators import *"
	@touch $@

policy/.venv/.done: $(VENV)/.done policy/requirements.txt
	$(UV) venv --quiet --allow-existing --python $(PYTHON) policy/.venv
	$(UV) pip sync --quiet --python policy/.venv/bin/python --require-hashes policy/requirements.txt
	@touch $@

.cache/audit/.done: $(VENV)/.done requirements-audit.txt
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .cache/audit
	$(UV) pip sync --quiet --python .cache/audit/bin/python --require-hashes requirements-audit.txt
	@touch $@
endif

clean: ## remove what the commands above made, and the lab's cache
	rm -rf $(VENV) $(ENGINE_VENV) policy/.venv .cache out
