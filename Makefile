# Everything runs in .venv; each target makes what it needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with everything for demo, tests and development

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Set PYTHON=python3.12, for example."; exit 1; }
	@$(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Broker, generated radiographs, training, streaming, the account: one command
	@$(BIN)/xray demo

test: lint ## Every test: static checks, unit tests, then real Kafka, Spark and Delta
	@$(BIN)/pytest -q

check: lint ## Lint, types, import contracts and unit tests, in under two minutes
	@$(BIN)/pytest -q -n 2 tests/unit

lint: $(STAMP)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Rewrite the code in the house's format
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: $(STAMP) ## Throughput and latency, each beside its baseline
	@$(BIN)/python -m benchmarks.throughput
	@$(BIN)/python -m benchmarks.latency

clean: ## Remove .venv and caches; the state folder (XRAY_HOME) stays
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
