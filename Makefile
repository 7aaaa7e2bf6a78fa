# `make demo` and `make test` need a Debian machine with Python 3.11 or 3.12, pip and make; all else they install. The test
# of the page runs where there is a browser (apt-get install chromium), and says so where there is none.

PYTHON  ?= python3
VENV    ?= .venv
ARGS    ?=

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check
READY   := $(VENV)/.ready
LINT    := $(VENV)/.lint
DOCS    := .venv-docs
LIBRARY := s3dnerf/native/libs3d_cpu.so
CUDA    ?=

CXX_FILES := $(shell find cuda_ext -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
KERNELS := $(shell find cuda_ext -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help setup kernels sanitize test-arm64 test-nehalem test-windows demo weights test test-fast docs lint format clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/'

setup: $(READY) $(LIBRARY) ## Build .venv with the pinned versions and this package in it

kernels: setup ## Build the kernels into the checkout (CUDA=1: for GPUs too, also without one)
	$(PY) cuda_ext/build.py $(if $(CUDA),--cuda)

sanitize: setup ## Run the tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) tools/sanitize.py

# PyTorch comes first and by itself, so that no other requirement can choose another build of it.
$(READY): requirements/torch.txt requirements/lock.txt pyproject.toml setup.py $(KERNELS)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --requirement requirements/torch.txt --constraint requirements/lock.txt
	$(PIP) install --requirement requirements/lock.txt
	$(PIP) install --constraint requirements/lock.txt --no-build-isolation --editable .
	@$(PY) -c 'import torch; print(f"torch=={torch.__version__}")' | grep "^$$(grep '^torch==' requirements/torch.txt)" \
		|| { echo "another torch has replaced the pinned one"; exit 1; }
	touch $@

# Brings the kernels back if they were removed. Without a compiler none are built, and PyTorch's operators run instead.
$(LIBRARY): | $(READY)
	test -e $@ || ! command -v $${CXX:-c++} >/dev/null || $(PY) cuda_ext/build.py

# The kernels run under an emulator, their tests here; tools/foreign_kernels.py says what to install.
test-arm64: setup ## Run the tests of the CPU kernels compiled for arm64, under qemu-user
	OMP_NUM_THREADS=1 $(PY) tools/foreign_kernels.py arm64 $(ARGS)

test-nehalem: setup ## Run them on an emulated x86-64 processor without AVX
	OMP_NUM_THREADS=1 $(PY) tools/foreign_kernels.py nehalem $(ARGS)

test-windows: setup ## Run them compiled for Windows, under Wine
	OMP_NUM_THREADS=1 $(PY) tools/foreign_kernels.py windows $(ARGS)

demo: setup ## Write outputs/demo.mp4: a public-domain portrait says the shipped sentence
	$(PY) tools/demo.py $(ARGS)

# Hours of work; a second call continues where the first one stopped.
weights: setup ## Make the shipped weights from videos (VIDEOS=DIR MANIFEST=CSV)
	$(PY) tools/make_weights.py --videos $(VIDEOS) --manifest $(MANIFEST) $(ARGS)

test: setup ## Run the tests (ARGS="-k name" for some of them)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## Run the quick tests only
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# The pages have an environment of their own, so that what builds them can never change the pinned PyTorch.
$(DOCS)/.ready: requirements/docs.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install --requirement requirements/docs.txt
	touch $@

docs: $(DOCS)/.ready ## Build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(LINT): requirements/lint.txt $(READY)
	$(PIP) install --requirement requirements/lint.txt --constraint requirements/lock.txt
	touch $@

lint: setup $(LINT) ## Check style, types, spelling and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib .
	$(VENV)/bin/clang-format --fallback-style=none --dry-run --Werror $(CXX_FILES)
	$(PY) -m mypy

format: setup $(LINT) ## Bring the code into the one format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format --fallback-style=none -i $(CXX_FILES)

clean: ## Remove what was built (not outputs/ and runs/)
	rm -rf $(VENV) $(DOCS) build dist s3dnerf/native *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
