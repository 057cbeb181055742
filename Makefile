# make        set up and run the pipeline; ends with the metrics
# make test   set up and run every check and test; does nothing if they passed on these very files
#
# PYTHON chooses the interpreter that the virtual environment is made from, 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
# dvc.yaml says `python`: it must be the environment's.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
FILES := $(shell git ls-files --cached --others --exclude-standard | grep -v ' ')

.PHONY: all test clean
.DELETE_ON_ERROR:

all: .venv/pipeline
	$(RUN) dvc repro
	$(RUN) dvc metrics show

test: .venv/tested
	@echo "All checks passed on these files. To run them again: rm .venv/tested"

.venv/tested: .venv/pipeline .venv/dev $(wildcard $(FILES))
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -n 2 --dist worksteal
	@touch $@

.venv/pipeline: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/pipeline
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv data/raw data/processed data/model
