# Everything runs in .venv; each target makes what it needs.
PYTHON ?= python3
BIN := .venv/bin
# What is installed: for the commands and the demo; for tests and development; TensorFlow as well, for its tests.
DEMO := .venv/.demo
DEV := .venv/.dev
TENSORFLOW := .venv/.tensorflow

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-tensorflow demo test test-long check lint format bench lock sbom advisories clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(DEMO) ## Make .venv with what the commands need: the extras train, gateway, alerts, reports and page

install-dev: $(DEV) ## Add what tests and development need

install-tensorflow: $(TENSORFLOW) ## Add TensorFlow, the reference engine, and ONNX Runtime, for benchmarks (1.3 GB)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Set PYTHON=python3.12, for example."; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

$(DEMO): locks/train.lock
$(DEV): locks/dev.lock | $(DEMO)
$(TENSORFLOW): locks/tensorflow.lock | $(DEV)
$(DEMO) $(DEV) $(TENSORFLOW): pyproject.toml locks/build.lock | $(BIN)/python
	@echo "installing $(filter-out locks/build.lock,$(filter locks/%,$^)) into .venv ..."
	@$(BIN)/python -m tools.install $(filter-out locks/build.lock,$(filter locks/%,$^))
	@touch $@

demo: $(DEMO) ## Broker, generated radiographs, training, streaming, the account: one command
	@$(BIN)/xray demo

# Processes share the tests, in groups that tests/conftest.py has. Most of a test of services waits, so three do well on
# two cores. The long ones run whole streams and benchmarks, whose threads take all cores: three of them together took
# three times as long as two.
PYTEST := $(BIN)/pytest -q --durations 25

test: lint ## Static checks, unit tests, real Kafka, Spark and Delta, and a stream that is killed: at most 15 minutes
	@$(PYTEST) -n 3 -m "not long"

test-long: $(DEV) ## The rest: the whole kill matrix, long days, benchmarks at their smallest, the wheel
	@$(PYTEST) -n 2 -m long

check: lint ## Lint, types, import contracts and unit tests, in under two minutes
	@$(BIN)/pytest -q -n 2 -m "not slow and not long" tests/unit

lint: $(DEV)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(DEV) ## Rewrite the code in the house's format
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: $(DEV) ## Decoding, throughput and latency, each beside its baseline
	@$(BIN)/python -m benchmarks.decoding
	@$(BIN)/python -m benchmarks.throughput
	@$(BIN)/python -m benchmarks.latency

COMPILE = $(BIN)/python -m tools.uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" $(UPGRADE)
lock: $(DEMO) ## Resolve pyproject.toml's requirements into locks/; UPGRADE=--upgrade takes the newest versions
	@$(COMPILE) pyproject.toml --all-extras -o locks/tensorflow.lock
	@$(COMPILE) pyproject.toml --extra dev --constraint locks/tensorflow.lock -o locks/dev.lock
	@$(COMPILE) pyproject.toml --extra train --extra gateway --extra alerts --extra reports --extra page --constraint locks/tensorflow.lock -o locks/train.lock
	@$(COMPILE) locks/build.in --constraint locks/tensorflow.lock -o locks/build.lock

sbom: $(DEV) ## List what this is made of in build/sbom.cdx.json (CycloneDX), for scanners
	@$(BIN)/python -m tools.sbom

advisories: $(DEV) ## Ask for known vulnerabilities of what is locked; says so where nobody answers
	@$(BIN)/python -m tools.advisories

clean: ## Remove .venv and caches; the state folder (XRAY_HOME) stays
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
