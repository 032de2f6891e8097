PYTHON ?= python3
VENV ?= .venv

.PHONY: help setup test lint types format check train clean

help:  ## Show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## Make a virtual environment with the project and its tools
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"

test:  ## Run the tests
	$(VENV)/bin/pytest

lint:  ## Check style
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types:  ## Check the types of the public API
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .ci/types

format:  ## Apply style
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

check: lint types test  ## Lint, types and tests

train:  ## Train 1,000 clients
	$(VENV)/bin/python experiments/run.py --clients 1000

clean:  ## Remove caches (runs and data stay)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
