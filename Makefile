# make run      install into .venv and run config/config.yaml (CONFIG=config/paper-tanh.yaml: another;
#               REPLACE=1: over results of other values)
# make frontier one of the studies, which are config/paper-linear.yaml, paper-tanh.yaml, frontier.yaml
# make test     install and run all tests
# make help     the rest

PYTHON ?= python3
CONFIG ?= config/config.yaml
REPLACE ?=
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Studies, each of the experiment file of its name.
STUDIES := paper-linear paper-tanh frontier
# Results of other values are replaced if REPLACE is anything but nothing, 0, no or false.
REPLACING := $(if $(filter-out 0 no false,$(REPLACE)),replace=true)
.PHONY: help run $(STUDIES) docs test test-slurm test-browser torture gpu-check lint format clean

help: ## List what can be made.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: $(VENV)/installed ## Run the experiment CONFIG from data to report; finished results are kept.
	@$(BIN)/snakemake --config experiment_file="$(CONFIG)" $(REPLACING)

paper-linear: ## Run the published linear setting on the full grid.
paper-tanh: ## Run the published tanh setting on the full grid, and a sweep in depth.
frontier: ## Run the best shapes for each number of parameters, over ten decades.
$(STUDIES): $(VENV)/installed
	@for config in $(wildcard config/$@.yaml config/$@-*.yaml); do \
	    $(BIN)/snakemake --config experiment_file="$$config" $(REPLACING) || exit 1; \
	done

docs: $(VENV)/installed-docs ## Build the site of the documentation: build/docs/index.html.
	@$(BIN)/python docs/site/build_site.py

test: $(VENV)/installed-dev ## Run all tests.
	@echo "Running all tests in two processes, which takes about 25 minutes on two cores."
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slurm: $(VENV)/installed-dev ## Run the tests on a real SLURM, which is started here (Debian, as root).
	@for program in slurmctld slurmd munged; do command -v $$program > /dev/null || missing=1; done; \
	[ -z "$$missing" ] || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null || { \
	        echo "error: slurm-wlm and munge are missing; allowed: install them, or run this as root on Debian" >&2; \
	        exit 2; }; \
	    apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	        apt-get -qq install --no-install-recommends slurm-wlm munge > /dev/null; }
	@$(BIN)/python -m pytest tests/slurm --numprocesses 4 --dist load

test-browser: $(VENV)/installed-dev ## Run the tests of the pages in Chromium (which is installed first on Debian, as root).
	@command -v chromium > /dev/null || command -v chromium-browser > /dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null || { \
	        echo "error: chromium is missing; allowed: install it, or run this as root on Debian" >&2; \
	        exit 2; }; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	        apt-get -qq install --no-install-recommends chromium fonts-dejavu-core > /dev/null; }
	@$(BIN)/python -m pytest tests/browser

torture: $(VENV)/installed-dev ## Interrupt and damage the quickstart in many ways, and count what is lost.
	@$(BIN)/python tests/faults/torture.py

gpu-check: ## Compare this machine's GPU with its CPU and time it (8 minutes; needs no installation).
	@PYTHONPATH="src:$$PYTHONPATH" $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu_check.py

lint: $(VENV)/installed-dev ## Check format, style, types and the workflow.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

format: $(VENV)/installed-dev ## Format all sources.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile rules

clean: ## Remove .venv and caches; results stay.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build src/*.egg-info
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	    { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1);" \
	    "allowed: Python 3.11 or newer, as in: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV), once: about 120 packages, 2 GB; a few minutes."
	@$(PYTHON) -m venv $(VENV)

# pip says hundreds of lines; those on large downloads, and how many packages there were, are shown.
define install
set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --editable '$(1)' | awk ' \
    /^ *(Downloading|Using cached) .* MB\)/ { sub(/^ */, "  "); print; fflush() } \
    /^Installing collected/ { print "  unpacking"; fflush() } \
    /^Successfully/ { print "  installed: " NF - 2 " packages" }'
endef
# Stamps: nothing is installed again unless pyproject.toml has changed.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@$(call install,.)
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@echo "Installing what the site of the documentation needs in addition."
	@$(call install,.[docs])
	@touch $@
$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what tests and checks need in addition."
	@$(call install,.[dev])
	@touch $@
