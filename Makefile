# Lathe: one word for each thing a developer does. `make` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
SHELL  := /bin/bash
# Processes that share the tests; 0: all in one. `make test TESTERS=2` is quicker where two cores are idle.
TESTERS ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo check test bench format wheel clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Lathe needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 69; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null \
	  || { echo "a C++ compiler is needed to build llama.cpp (Debian: apt-get install g++)" >&2; exit 69; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade -c constraints.txt pip setuptools
	@touch $@

# The first install builds llama.cpp from source: about five minutes on two cores. pip keeps the wheel for the next one.
$(VENV)/.base: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing lathe (the first time builds llama.cpp: about five minutes on two cores)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	@mkdir -p .typing/lathe && for floor in tui engine quantize store; do ln -sfn ../../$$floor .typing/lathe/$$floor; done
	@touch $@

setup: $(VENV)/.dev ## Make .venv with everything that tests and checks need

demo: $(VENV)/.base ## Install, then run the whole loop on the embedded model
	$(BIN)/lathe demo

check: $(VENV)/.dev ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "longest files:"; git ls-files '*.py' | xargs wc -l | sort -rn | sed -n '2,11p'

test: check ## Run every test (checks included)
	$(BIN)/pytest -n $(TESTERS) --dist worksteal

bench: $(VENV)/.dev ## Measure against the peers; benchmarks/README.md says how to build them
	$(BIN)/python benchmarks/run.py

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(PIP) wheel --no-deps -w dist .

clean: ## Remove everything that was made, .venv included
	rm -rf $(VENV) .typing build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
