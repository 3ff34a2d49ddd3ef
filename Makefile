# One word for everything. Needs Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint format gpu clean

demo: $(VENV)/.engine ## install, then run the quickstart on the bundled model
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.dev ## every test
	$(BIN)/python -m pytest -q -n auto

check: $(VENV)/.dev lint ## format, types, quick tests
	$(BIN)/python -m pytest -q -n auto tests/lang tests/interpreter tests/scheduler tests/cache tests/text

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(VENV)/.dev ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -q -m gpu

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stemma needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[engine]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.engine

clean:
	rm -rf $(VENV) build dist
