# Each target makes the virtual environment it needs; a second call finds it and starts at once.
# ARGS are handed on: make test ARGS="-k bridge -x"

# The first Python on the path that is new enough; another one: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BENCHMARK_VENV := .venv-benchmark
BIN := $(VENV)/bin
STAMPS := $(VENV)/.installed $(addprefix $(VENV)/.installed-,test dev doc) \
	$(BENCHMARK_VENV)/.installed-benchmark
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs benchmarks mapping layers
.NOTPARALLEL:

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.installed  ## remove a planted batch effect from 700 real cells
	$(BIN)/bioren demo $(ARGS)

# BIOREN_DATA, a folder with the public data sets, reaches the tests as it stands in the environment.
test: $(VENV)/.installed-test  ## run the tests, and the tutorials as notebooks
	$(BIN)/python -m pytest $(if $(wildcard tutorials/*.ipynb),--nbmake tests tutorials) $(ARGS)

lint: $(VENV)/.installed-dev  ## style, types and the floors of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-doc  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)

benchmarks: $(BENCHMARK_VENV)/.installed-benchmark  ## compare with the peers, in an environment of its own
	$(BENCHMARK_VENV)/bin/python benchmarks/integration/run.py $(ARGS)
	$(BENCHMARK_VENV)/bin/python benchmarks/integration/figures.py

mapping: $(BENCHMARK_VENV)/.installed-benchmark  ## map queries onto references, beside the peers
	$(BENCHMARK_VENV)/bin/python benchmarks/mapping/bulk.py
	$(BENCHMARK_VENV)/bin/python benchmarks/mapping/leave_one_out.py $(ARGS)
	$(BENCHMARK_VENV)/bin/python benchmarks/mapping/held_out_types.py $(ARGS)

LAYERS := speed defaults claims small_batches gan segmentation distributed reinforcement
layers: $(BENCHMARK_VENV)/.installed-benchmark  ## measure the layers: speed, claims, networks
	for name in $(LAYERS); do $(BENCHMARK_VENV)/bin/python benchmarks/layers/$$name.py $(ARGS) || exit; done

# The stamp .installed stands for the package alone, .installed-GROUP for it and a dependency group.
$(STAMPS): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "bioren needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install 'pip>=25.1'  # the first that knows --group
	$(@D)/bin/python -m pip install -c constraints.txt -e . $(patsubst .installed-%,--group %,$(filter .installed-%,$(@F)))
	@touch $@
