# The newcomer's two commands are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The model sets live outside the checkout, so that a fresh clone does not fetch them again.
MODELS_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/emiliad/models
export MODELS_DIR
# The parts that depend on nothing but their arguments are tested to the last branch.
PURE := emiliad/autokick/*.py,pipeline/segment.py,pipeline/pieces.py,pipeline/timeline.py,pipeline/keep.py,pipeline/naming.py

.DEFAULT_GOAL := help
.PHONY: help demo test simulate lint format chaos bench models clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.cpu models  ## run the whole job on real speech: ./demo
	@$(BIN)/python -m ops.demo

test: $(VENV)/.test models lint  ## run every check and test
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report --include='$(PURE)' --show-missing --fail-under=100

SEEDS ?= 10000
simulate: $(VENV)/.test  ## run the queue in SEEDS simulated worlds of faults
	$(BIN)/python -m tests.sim 0 $(SEEDS)

lint: $(VENV)/.test  ## formatting, lint, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell emiliad pipeline ops tests *.md

format: $(VENV)/.test  ## put the code in its standard form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/.test  ## the long chaos test: 300 tasks, an outage of a minute
	CHAOS_TASKS=300 CHAOS_OUTAGE_S=60 $(BIN)/python -m pytest -s tests/chaos

bench: $(VENV)/.cpu models  ## what each stage costs on this machine
	MODELS=$${MODELS:-demo} $(BIN)/python -m emiliad bench

models: $(VENV)/.cpu  ## fetch and check the demo's models
	@MODELS=demo $(BIN)/python -m emiliad models pull

$(BIN)/python:
	@ops/venv.sh "$(PYTHON)" "$(VENV)"

$(VENV)/.cpu: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[cpu]'
	@touch $@

$(VENV)/.test: $(VENV)/.cpu pyproject.toml constraints.txt
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) demo
