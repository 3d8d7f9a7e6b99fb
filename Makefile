# make run | test | check | test-deep | bench | bench-peers | demo | demo-cycles | model | docs | lock | clean
# Everything is installed into .venv from the lock files, by hash, with nothing but Python 3.11-3.13 and its pip.

# Where nobody may write bytecode, each of the hundreds of processes that the tests start would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
CONFIG ?= $(firstword $(wildcard config.yaml) config.example.yaml)
MODEL ?= scripted

.DELETE_ON_ERROR:
.PHONY: run test check test-deep bench bench-peers demo demo-cycles model docs lock clean

run: .venv/run.stamp
	$(BIN)/penstock serve --config $(CONFIG)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict gateway
	$(BIN)/lint-imports

test-deep: .venv/dev.stamp .venv/local.stamp .venv/agents.stamp .venv-litellm/stamp
	$(BIN)/python -m pytest -m deep --durations=10 --timeout=1800

# ARGS=--quick, ARGS=--write, ARGS="--only json half": tests/bench/__main__.py. What can't be installed is measured as missing, and fails the run.
bench: .venv/dev.stamp
	-$(BIN)/python -m tests.bench.peers nginx
	$(BIN)/python -m tests.bench $(ARGS)

bench-peers: .venv/dev.stamp
	-$(BIN)/python -m tests.bench.peers
	$(BIN)/python -m tests.bench --peers $(ARGS)

demo: .venv/dev.stamp $(if $(filter local,$(MODEL)),.venv/local.stamp)
	$(BIN)/penstock demo --model $(MODEL)

# The public pattern of Cycles' runaway demo, with their own Python client, against this gateway.
demo-cycles: .venv/dev.stamp
	$(BIN)/penstock demo cycles

# A real model server where config.example.yaml has the provider `local`; docs/quickstart.md uses it.
model: .venv/local.stamp
	$(BIN)/python -m gateway.demo.local_model --port 9801 --context 8192

docs: .venv/dev.stamp
	$(BIN)/python -m scripts.build_reference

# For maintainers; needs uv. The locks name no registry: pip asks the one it is set up with.
RESOLVE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links
COMPILE := $(RESOLVE) pyproject.toml --group build
lock:
	$(COMPILE) --extra fast -o requirements.lock
	$(COMPILE) --group dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --extra local -c requirements.lock -o requirements-local.lock
	$(COMPILE) --group dev --group agents -c requirements.lock -o requirements-agents.lock
	for each in tests/real/python/*.in; do $(RESOLVE) $$each -o $${each%.in}.lock || exit; done
	$(COMPILE) --extra litellm -o requirements-litellm.lock

clean:
	rm -rf .venv .venv-litellm .bench tests/real/python/environments tests/real/npm/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Penstock needs Python 3.11, 3.12 or 3.13 with venv; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run.stamp: requirements.lock pyproject.toml | .venv/bin/python
.venv/dev.stamp: requirements-dev.lock pyproject.toml | .venv/bin/python
.venv/local.stamp: requirements-local.lock pyproject.toml | .venv/bin/python
.venv/agents.stamp: requirements-agents.lock pyproject.toml | .venv/dev.stamp
.venv/%.stamp:
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-build-isolation -e .
	@touch $@

# LiteLLM's proxy wants other versions of some packages than the gateway, so it has an environment of its own, with the package beside it. Its
# thousands of modules are compiled once: it starts several processes.
.venv-litellm/stamp: requirements-litellm.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Penstock needs Python 3.11, 3.12 or 3.13 with venv; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x .venv-litellm/bin/python || $(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	-.venv-litellm/bin/python -m compileall -q .venv-litellm/lib
	@touch $@
