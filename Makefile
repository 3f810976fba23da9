# Everything runs in .venv, made here with python3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow clean

demo: $(VENV)/installed  ## draw a bird on a tree with the shipped bundle
	$(BIN)/python infer.py "bird on a tree" --out out

test: $(VENV)/installed-dev  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

slow: $(VENV)/installed-dev  ## the long proofs
	$(BIN)/python -m pytest -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
