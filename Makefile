# `make distill` and `make test` do everything on a fresh machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEACHER ?= ppo/LunarLander-v3

.PHONY: install distill test lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch -e '.[dev]'
	touch $@

distill: install
	$(BIN)/python scripts/distill_policy.py --teacher $(TEACHER) --output runs/distill --student.compression 100

test: install lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
