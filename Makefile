# Everything a developer runs. The environment lives in .venv, made on first use and kept until
# pyproject.toml or constraints.txt change; `make test` also sets up the servers it tests with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := dev,rabbitmq,kafka
# Folders may be missing in a source package; the checkers refuse a folder that does not exist.
SOURCES := $(wildcard src tests benchmarks examples)
# Arguments for pytest and the benchmark: make test ARGS="-k resume -x"
ARGS ?=
# Test files run side by side, because much of a test with real servers is waiting; in their order,
# in which the quick ones come last.
JOBS ?= 2
# Gateways that tests start again and again are compiled once, whatever this shell says.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test soak servers check chaos bench lint format lock clean

help: ## show this list
	@echo "make demo     start the gateway with its demo pages (needs Python 3.11 or newer, nothing else)"
	@echo "make test     lint and every test; installs what it needs: RabbitMQ 3.10, 4.0 and 4.3, Kafka, Java, Chromium, nginx, npm packages"
	@echo "make soak     the long tests that make test leaves out: the short form of the chaos test on every broker and cluster"
	@echo "make check    lint, types and the unit tests, in seconds; needs no server"
	@echo "make chaos    break gateways, brokers and connections for minutes and count what got lost: nothing"
	@echo "make bench    measure against a null server, Nchan, Node.js bridges, Web STOMP, in about eleven minutes; ARGS='--only fanout'"
	@echo "make lint     ruff and mypy alone"
	@echo "make format   let ruff format and sort the sources"
	@echo "make lock     write constraints.txt anew from the newest allowed versions"
	@echo "make clean    remove the environment, caches and build results"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter; ARGS='-k resume' is passed on to pytest; JOBS=0 runs one test at a time."

demo: $(VENV)/.runtime
	$(BIN)/queuecast demo $(ARGS)

# What is installed for the tests comes over the network, while this machine looks at the sources.
test:
	@$(MAKE) --no-print-directory -j 2 lint servers
	$(PYTEST) -m "not soak" $(ARGS)

# One at a time: each keeps two cores busy by itself.
soak: $(VENV)/.dev servers
	$(PYTEST) -n 0 -m soak $(ARGS)

servers:
	scripts/test-servers.sh

check: lint
	$(PYTEST) -q tests/unit tests/server $(ARGS)

# make chaos ARGS="--duration 600 --broker rabbitmq-4.0 --clients 300 --seed 7"
# make chaos ARGS="--broker kafka --faults broker,operator"
# make chaos ARGS="--broker rabbitmq-cluster --broker kafka-cluster"
chaos: $(VENV)/.dev
	scripts/test-servers.sh
	$(BIN)/python -m tests.chaos $(ARGS)

# The Node.js bridges are peers; without npm the benchmark says that they are missing.
bench: $(VENV)/.dev
	@if command -v npm >/dev/null && [ ! -L benchmarks/node/node_modules ] && [ ! benchmarks/node/node_modules/.package-lock.json -nt benchmarks/node/package-lock.json ]; then \
	    npm ci --prefix benchmarks/node --no-audit --no-fund --loglevel=error || echo "npm ci failed in benchmarks/node" >&2; \
	fi
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES) scripts
	$(BIN)/ruff format --check $(SOURCES) scripts
	$(BIN)/mypy --strict $(SOURCES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only $(SOURCES) scripts
	$(BIN)/ruff format $(SOURCES) scripts

lock:
	PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" scripts/lock.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/e2e/node/node_modules benchmarks/node/node_modules tests/e2e/spring/target
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --clear: an attempt that was interrupted leaves an environment without pip.
$(VENV)/.created:
	@$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.runtime
