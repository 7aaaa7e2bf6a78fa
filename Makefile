# `make demo` and `make test` need a Debian machine with Python 3.11 or 3.12, pip and make; all else they install.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
READY  := $(VENV)/.ready
CUDA   ?=

KERNELS := $(shell find cuda_ext -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help setup kernels sanitize demo test lint format clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

setup: $(READY) ## Build .venv with the pinned versions and this package in it

kernels: setup ## Build the kernels into the checkout (CUDA=1: for GPUs too, also without one)
	$(PY) cuda_ext/build.py $(if $(CUDA),--cuda)

sanitize: setup ## Run the tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) tools/sanitize.py

# PyTorch comes first and by itself, so that no other requirement can choose another build of it.
$(READY): requirements/torch.txt requirements/lock.txt requirements/mediapipe.txt pyproject.toml setup.py $(KERNELS)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --requirement requirements/torch.txt --constraint requirements/lock.txt
	$(PIP) install --requirement requirements/lock.txt
	$(PIP) install --no-deps --requirement requirements/mediapipe.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@$(PY) -c 'import torch; print(f"torch=={torch.__version__}")' | grep "^$$(grep '^torch==' requirements/torch.txt)" \
		|| { echo "another torch has replaced the pinned one"; exit 1; }
	touch $@

demo: setup ## Write outputs/demo.mp4: a public-domain portrait says the shipped sentence
	$(PY) tools/demo.py $(ARGS)

test: setup ## Run the tests (ARGS="-k name" for some of them)
	$(PY) -m pytest $(ARGS)

lint: setup ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## Bring the code into the one format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## Remove what was built (not outputs/ and runs/)
	rm -rf $(VENV) build dist s3dnerf/native *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
