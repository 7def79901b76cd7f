# Two commands matter: `make demo` and `make test`. `make` alone lists the rest.

# The newest interpreter is not always the best tested one: 3.11 first, then whatever python3 is (3.11 or later).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY     := .venv/bin/python
EXTRAS ?= test
ARGS   ?=

# uv reads neither pip's variables nor pip's list syntax (spaces, where uv wants commas): hand them over.
empty :=
space := $(empty) $(empty)
comma := ,
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

# uv does not byte-compile. Where this variable is set, every process would compile torch and lightning anew
# (9-15 s an import instead of 3 s), so it is emptied for all that runs from here.
export PYTHONDONTWRITEBYTECODE =

# A benchmark is named after its noun; these are what benchmarks share.
benches = $(filter-out record tables contenders interpolators searches,$(basename $(notdir $(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types layers check results clean distclean

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*  ## /\1\t/' | expand -t 14
	@echo "benchmarks: $(if $(benches),$(addprefix bench-,$(subst _,-,$(sort $(benches)))),none yet)"

setup: .venv/.stamp  ## create .venv and install lapse with the pinned versions

# The stamp depends on what is installed, not on the code: the installation is editable.
.venv/.stamp: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lapse needs Python 3.11 or later, found " + sys.version)'
	$(PYTHON) -m venv .venv
	@# uv resolves in seconds where pip takes a minute; pip stands in wherever uv cannot be had or fails.
	( $(PY) -m pip install -q -c constraints.txt uv \
	  && .venv/bin/uv pip install -q -p $(PY) -c constraints.txt -b constraints.txt -e '.[$(EXTRAS)]' ) \
	|| $(PY) -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup  ## forecast with the shipped model: writes demo/forecast.zarr, .nc and report.html
	$(PY) -m lapse.surrogate.demo

# The status is kept for .ci/run, since make turns every failure into a 2.
test: setup  ## run all tests (ARGS="-k grid" picks some)
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(ARGS) </dev/null; status=$$?; echo $$status > .venv/.pytest-status; exit $$status

lint: setup  ## ruff
	$(PY) -m ruff check

# In a clone whose name differs from the package's, mypy would name the modules after the folder, and refuse a
# name such as lapse-main altogether. Seen through a link called lapse, they have the names that users import.
types: setup  ## mypy, strict
	@mkdir -p .mypy_cache/tree && ln -sfn ../.. .mypy_cache/tree/lapse
	MYPYPATH=.mypy_cache/tree $(PY) -m mypy -m lapse -p lapse.physics -p lapse.datasets -p lapse.autoencoder -p lapse.surrogate

layers: setup  ## import-linter: surrogate -> autoencoder -> datasets -> physics
	.venv/bin/lint-imports --no-cache

check: lint types layers  ## lint, types and layers

bench-%: setup  ## run benchmarks/NAME.py, which writes benchmarks/results/NAME.json (QUICK=1: a smoke test)
	@test -f benchmarks/$(subst -,_,$*).py || { echo "no benchmarks/$(subst -,_,$*).py; there are: $(sort $(benches))"; exit 1; }
	$(PY) benchmarks/$(subst -,_,$*).py $(ARGS)

bench-physics: bench-operators  # what the equations are made of

results: setup  ## render docs/results.md from benchmarks/results/*.json, and nothing else
	$(PY) benchmarks/tables.py

# What took long to compute stays: runs, data, benchmarks/work.
clean:  ## remove caches and the demo's output; keeps .venv, runs, data and all results
	rm -rf build dist demo outputs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf .venv
