.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := locks/dev.txt
FAULTS := $(patsubst tests/faults/test_%.py,chaos-%,$(sort $(wildcard tests/faults/test_*.py)))
UV_COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

# The stamp is written last, so an interrupted install is done again.
$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Gristmill needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(VENV)/.installed ## set up .venv with everything pinned

demo: install ## answer 24 varied requests on this machine
	@$(BIN)/python -m examples.demo

test: lint ## lint, then run every test
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(FAULTS) soak ## the tests of faults, much longer, and the soak; one part by its name, such as chaos-poison

$(FAULTS): chaos-%: install
	@CHAOS=$${CHAOS:-40} $(BIN)/python -m pytest --timeout=3600 --durations=0 --durations-min=10 tests/faults/test_$*.py $(ARGS)

soak: install ## half an hour of load while everything fails at random; SOAK="--minutes 5 --seed 7"
	@$(BIN)/python -m tests.faults.soak $(SOAK)

schemas: install ## 500 generated schemas, each answered by a real model
	@SCHEMAS=$${SCHEMAS:-500} $(BIN)/python -m pytest --timeout=7200 -s tests/worker/chat/test_generated_schemas.py

gemma: install ## fetch Gemma 3 270M (238 MB) and compare its answers with those of transformers
	@GEMMA=1 $(BIN)/python -m pytest --timeout=3600 tests/worker/model/test_gemma3.py $(ARGS)

paged: install ## compare what the engine for GPUs writes, its kernels played on the CPU, with transformers
	@PAGED=1 $(BIN)/python -m pytest --timeout=3600 tests/worker/engine/paged/test_smollm2.py $(ARGS)

lint: install ## ruff, types and the import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --num-workers 2
	@$(BIN)/lint-imports

bench: install ## compare the engine with others on the same tokens
	@$(BIN)/python -m benchmarks.compare

bench-gpu: ## measure the engine on this machine's GPU, with models of real shapes and random weights
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(ARGS)

bench-system: install ## time a run of 200 lines end to end
	@$(BIN)/python -m benchmarks.end_to_end

lock: ## resolve the pinned dependencies anew (needs uv)
	$(UV_COMPILE) --extra cpu --extra embedded --group dev pyproject.toml -o locks/dev.txt
	$(UV_COMPILE) --extra cpu pyproject.toml -o locks/cpu.txt
	$(UV_COMPILE) --extra gpu pyproject.toml -o locks/gpu.txt
	for major in 1 2 3; do \
	  echo "openai>=$$major,<$$((major + 1))" | $(UV_COMPILE) --upgrade - -o locks/openai-$$major.txt || exit 1; \
	done

clean: ## remove what was built (your data in .gristmill stays)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help install demo test chaos $(FAULTS) soak schemas gemma paged lint bench bench-gpu bench-system lock clean
