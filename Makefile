# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` each do all the set-up they need; a second run reuses the environment.
VENV ?= .venv
PYTHON ?= python3
export VENV PYTHON
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUTPUT ?= output/demo
JOBS ?= 2
KERNELS := $(wildcard projects/vastdet/layers/build.py projects/vastdet/layers/csrc/*/*)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format types check-cpp check-cuda ci clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything that the other targets need

$(READY): constraints.txt setup.py tools/setup_environment.sh tools/install_detectron2.py $(KERNELS)
	@bash tools/setup_environment.sh

# Threads that wait spin by default, which takes the cores from those that load images.
demo: $(READY)  ## score CQ-DINO among 1,000 categories, train a small one, write a page of results
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/run_demo.py --output $(DEMO_OUTPUT)

test: $(READY)  ## run all tests
	@$(BIN)/python -m pytest -n $(JOBS)

test-fast: $(READY)  ## run the tests that take seconds
	@$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

lint: $(READY)  ## check format, style and spelling
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/codespell

format: $(READY)  ## format the code and mend what can be mended
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

types: $(READY)  ## check the types of the package
	@$(BIN)/mypy

check-cpp: $(READY)  ## read the C++ sources with warnings as errors
	@$(BIN)/python tools/check_cpp_sources.py

check-cuda: $(READY)  ## compile the CUDA sources for sm_80 and sm_90, where there is nvcc
	@bash tools/check_cuda_sources.sh

ci: lint types check-cpp check-cuda test  ## what .ci/run runs

clean:  ## remove build products; keeps .venv and output
	@rm -rf build dist projects/*.egg-info .pytest_cache .mypy_cache .ruff_cache
