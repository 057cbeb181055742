# make        set up and run the pipeline; ends with the figures, yours beside the committed ones
# make serve  set up and serve the built collection on http://127.0.0.1:8000
# make image  build the container's image and ask it, without Docker; root, buildah and debootstrap: docs/deploy.md
# make check  set up and run the checks, and the tests that take no stage, server or browser: a minute and a half on 2 cores
# make test   set up and run every check and test; about 17 minutes; does nothing if they passed on these very files
# make real   the tests with Caltech-101 and ImageNet weights, from the folder REAL: docs/tests.md; some minutes
# make coverage  which branches of the library no test takes; a run that was stopped goes on where it was
# make mutants   how many small errors in what computes figures the tests notice: docs/tests.md; 20 minutes, resumed too
# make reproduce  run what is committed twice, in clean clones with empty caches, and compare: some minutes
# make anywhere   compute index and figures as other processors would, and compare every byte: 11 minutes
# make browser  install Chromium for the tests of the browser page, which skip without; root and apt-get
# make report BASE=main  run the pipeline, and write what differs from BASE into report/: stages, settings, figures, curves
# make comment PR=12     put that report under a pull request, with CML; needs npx, and a token of GitHub in REPO_TOKEN
# make lock   pin what pyproject.toml names, in requirements.txt and requirements/; LOCK=--upgrade for newer versions
# make audit  ask the Python Packaging Advisory Database about every pinned package; needs the internet
# make sbom   list what is installed from where, as CycloneDX JSON in sbom/
#
# PYTHON chooses the interpreter that the virtual environment is made from, 3.11 to 3.13 (TensorFlow's limit).

PYTHON ?= python3
BIN := .venv/bin
# dvc.yaml says `python`: it must be the environment's.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
AUDIT := .venv/audit/bin
# A file of tests is one process's, so that what its tests share is made once; long files come first (tests/conftest.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder
SUPPORTED = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed (TensorFlow has no other): make PYTHON=python3.12")'
BASE ?= main
REAL ?= ../shared/data
LOCK :=
CML := @dvcorg/cml@0.20.0
FILES := $(shell git ls-files --cached --others --exclude-standard | grep -v ' ')
# A file that is added or deleted changes this name, so that what passed is what is here.
TESTED := .venv/tested-$(shell printf '%s\n' $(sort $(wildcard $(FILES))) | cksum | cut -d' ' -f1)

# The library's sources, and a file that says which branches of them each file of tests takes.
SOURCES := $(wildcard lookalike/*.py lookalike/*/*.py stages/*.py stages/*/*.py)
COVERED := .venv/covered/doctests $(patsubst tests/%.py,.venv/covered/%,$(wildcard tests/*/test_*.py))
# What files of tests share.
SHARED := $(wildcard tests/conftest.py tests/*/conftest.py tests/helpers/*.py)

define CHECKS
$(RUN) ruff check .
$(RUN) ruff format --check .
$(RUN) mypy
endef

.PHONY: all serve test check real coverage mutants reproduce anywhere browser report comment lock audit sbom image clean
.DELETE_ON_ERROR:

all: .venv/pipeline
	$(RUN) dvc repro
	$(RUN) dvc metrics diff --all --targets metrics/metrics.json
	@$(RUN) python proof/committed.py

serve: .venv/serve
	test -e data/model/model.json || $(RUN) dvc repro model
	test -e data/index/index.faiss || $(RUN) dvc repro index
	$(RUN) lookalike serve

image:
	$(PYTHON) deploy/check.py

check: .venv/pipeline .venv/dev
	$(CHECKS)
	$(RUN) pytest $(TWO) -m "not slow"

reproduce: .venv/pipeline
	$(RUN) python proof/reproduce.py

anywhere: .venv/pipeline
	$(RUN) dvc pull --quiet data/features
	test -e data/processed/images.npy || $(RUN) dvc repro preprocess
	$(RUN) python proof/anywhere.py

test: $(TESTED)
	@echo "All checks passed on these files. To run them again: rm .venv/tested-*"

browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	    export DEBIAN_FRONTEND=noninteractive; \
	    timeout 120 apt-get -qq update && timeout 300 apt-get -qq install --yes --no-install-recommends chromium; }

$(TESTED): .venv/pipeline .venv/dev $(wildcard $(FILES))
	$(CHECKS)
	$(RUN) pytest $(TWO)
	@rm -f .venv/tested-* && touch $@

real: .venv/pipeline .venv/dev
	LOOKALIKE_REAL_DATA="$(abspath $(REAL))" $(RUN) pytest $(TWO) tests/pipeline/test_real_data.py

coverage: $(COVERED)
	$(BIN)/coverage combine --quiet --keep .venv/covered
	$(BIN)/coverage report
	$(RUN) python proof/suite/uncovered.py

# One file of tests at a time, so that a run that is stopped goes on where it was.
.venv/covered/%: tests/%.py $(SHARED) $(SOURCES) | .venv/dev
	@mkdir -p $(@D) && rm -f .venv/covered/.coverage.$(subst /,-,$*).*
	$(RUN) coverage run --data-file=.venv/covered/.coverage.$(subst /,-,$*) -m pytest -q $<
	@touch $@

.venv/covered/doctests: $(SOURCES) | .venv/dev
	@mkdir -p $(@D) && rm -f $(@D)/.coverage.doctests.*
	$(RUN) coverage run --data-file=$(@D)/.coverage.doctests -m pytest -q lookalike
	@touch $@

mutants: .venv/proof
	$(RUN) python proof/suite/mutants.py

.venv/pipeline: requirements.txt pyproject.toml
	@$(SUPPORTED)
	$(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --requirement requirements.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/serve: requirements/serve.txt .venv/pipeline
	$(INSTALL) --require-hashes --requirement requirements/serve.txt
	@touch $@

.venv/dev: requirements/dev.txt .venv/pipeline
	$(INSTALL) --require-hashes --requirement requirements/dev.txt
	@touch $@

.venv/proof: requirements/proof.txt .venv/dev
	$(INSTALL) --require-hashes --requirement requirements/proof.txt
	@touch $@

# What cannot be pulled is computed.
report: .venv/pipeline .venv/dev
	$(RUN) dvc pull --quiet || true
	$(RUN) dvc repro
	$(RUN) python proof/change.py "$(BASE)" report

comment:
	npm_config_ignore_scripts=true npx --yes $(CML) comment update --target "pr/$(PR)" \
	    --driver github --repo "$$GITHUB_SERVER_URL/$$GITHUB_REPOSITORY" report/report.md

# Apart: its packages need no agreement with ours.
.venv/audit/made: requirements/audit.txt
	@$(SUPPORTED)
	$(PYTHON) -m venv .venv/audit
	$(AUDIT)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/audit.txt
	@touch $@

lock: .venv/audit/made
	PATH="$(CURDIR)/$(AUDIT):$$PATH" python requirements/lock.py $(LOCK)

# --strict: a package that the database does not know is a failure, not silence.
audit: .venv/audit/made
	for file in requirements.txt requirements/*.txt; do echo "$$file"; \
	    $(AUDIT)/pip-audit --strict --disable-pip --require-hashes --requirement $$file || exit 1; done

sbom: .venv/audit/made
	mkdir -p sbom
	for file in requirements.txt requirements/*.txt; do \
	    $(AUDIT)/cyclonedx-py requirements $$file --pyproject pyproject.toml --output-reproducible \
	    --output-file sbom/$$(echo $${file%.txt} | tr / -).cdx.json || exit 1; done

clean:
	rm -rf .venv report sbom data/raw data/processed data/model
