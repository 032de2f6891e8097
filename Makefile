PYTHON ?= python3
VENV ?= .venv

.PHONY: help setup test lint format check train clean

help:  ## Show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## Make a virtual environment with the project and its tools
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[dev]"

test:  ## Run the tests
	$(VENV)/bin/pytest

lint:  ## Check style
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

format:  ## Apply style
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

check: lint test  ## Lint and tests

train:  ## Train 1,000 clients
	$(VENV)/bin/python experiments/run.py --clients 1000

clean:  ## Remove caches (runs and data stay)
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
