# make demo   train an OSN beside a matched Transformer on real text, write a report, and a page to explore the OSN
# make test   the tests
# make docs   the documentation as a site, in build/site: search, API reference, every link checked
# make release  sdist and wheels in dist/, checked, installed in empty environments and tested there
# All set up everything they need in .venv first, from Python 3.11 or later alone.
.DEFAULT_GOAL := help
.PHONY: help setup demo test docs release lint format clean
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.syncattn-installed
export TOKENIZERS_PARALLELISM := false
# Threads that wait do not spin: on two busy cores spinning can cost a factor of ten.
export OMP_WAIT_POLICY := passive

help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST) | head -4

KERNEL := $(wildcard src/syncattn/backends/cpu/kernel/*)

$(STAMP): pyproject.toml setup.py constraints.txt $(KERNEL)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "syncattn needs Python 3.11 or later: found '$$("$(PYTHON)" --version 2>&1)'; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@test -e src/syncattn/backends/cpu/_kernel.so || echo "installed without the CPU kernel: there is no C++" \
	  "compiler (GCC or Clang, C++17). When there is one: make --always-make setup" >&2
	@touch $(STAMP)

setup: $(STAMP)

# What lowers the loss of both (docs/training.md); the Transformer gets a gate of its own since the OSN has one.
DEMO := --steps 900 --optimizer muon --lr 0.012 --set token_shift=false --set short_convolution=4 \
	--set value_residual=true --set zero_outputs=true --set logit_softcap=15.0 --baseline-set qk_norm=true

demo: $(STAMP)
	$(BIN)/syncattn compare stdlib --out runs/demo --overwrite $(DEMO)

# A test keeps one core busy, so there is a process a core; those that need threads set how many.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# RELEASE has further options, such as --build-only or --python python3.13.
release:
	"$(PYTHON)" packaging/release.py $(RELEASE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Anew each time: reference and navigation are made of what the modules and docs/README.md say now. Warnings are errors.
docs: $(STAMP)
	@$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt 'syncattn[docs]'
	rm -rf build/site
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs/site -d build/site-cache . build/site
	$(BIN)/python docs/site/check.py build/site

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
