# Everything runs in .venv; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check format bench clean help

help: ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(STAMP) ## 8 processes over MQTT, 2 of them Byzantine, filtered by PACE
	$(BIN)/gossipfl testbed run --nodes 8 --byzantine 2 --attack sign-flip --set attack.strength=4 --rounds 80 --set train.local_steps=3 --out runs/demo --force

test: $(DEV_STAMP) mosquitto ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(DEV_STAMP) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: mosquitto
mosquitto:
	@.ci/install-mosquitto

$(VENV)/bin/python:
	@.ci/make-venv $(PYTHON) $(VENV)

# torch comes first and pinned, so that nothing later can pull in another build of it.
$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	@.ci/install-build-tools $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove the environment and everything generated
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
