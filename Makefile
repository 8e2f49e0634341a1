# The newcomer's two commands are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The model sets live outside the checkout, so that a fresh clone does not fetch them again.
MODELS_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/emiliad/models
export MODELS_DIR
# The parts that depend on nothing but their arguments are tested to the last branch.
PURE := emiliad/autokick/*.py,pipeline/segment.py,pipeline/pieces.py,pipeline/timeline.py,pipeline/keep.py,pipeline/naming.py
PURE_TESTS := $(addprefix tests/pipeline/test_,$(addsuffix .py,segment keep naming)) \
              $(addprefix tests/autokick/test_,$(addsuffix .py,decide fit objects reasons))
# Test files that run side by side; many of them wait for real daemons most of the time.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test simulate lint format chaos rehearse bench models image examples locks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.cpu models  ## run the whole job on real speech: ./demo
	@$(BIN)/python -m ops.demo

test: $(VENV)/.test models lint  ## run every check and test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile
	$(BIN)/python -m coverage run -m pytest -q $(PURE_TESTS)
	$(BIN)/python -m coverage report --include='$(PURE)' --show-missing --fail-under=100

SEEDS ?= 10000
simulate: $(VENV)/.test  ## run the queue in SEEDS simulated worlds of faults
	$(BIN)/python -m tests.sim 0 $(SEEDS)

lint: $(VENV)/.test  ## formatting, lint, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell emiliad pipeline ops tests docs kustomize *.md

format: $(VENV)/.test  ## put the code in its standard form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/.test  ## the long chaos test: 300 tasks, an outage of a minute
	CHAOS_TASKS=300 CHAOS_OUTAGE_S=60 $(BIN)/python -m pytest -s tests/chaos

rehearse: $(VENV)/.test  ## run daemons under a real Prometheus, draw the dashboard: ./pictures
	$(BIN)/python -m tests.ops pictures

bench: $(VENV)/.cpu models  ## what each stage costs on this machine
	MODELS=$${MODELS:-demo} $(BIN)/python -m emiliad bench

models: $(VENV)/.cpu  ## fetch and check the demo's models
	@MODELS=demo $(BIN)/python -m emiliad models pull

DOCKER   ?= docker
IMAGE    ?= emiliad
VERSION  := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
image:  ## build the container images IMAGE and IMAGE-slim
	for target in slim gpu; do \
	    suffix=; if [ $$target = slim ]; then suffix=-slim; fi; \
	    $(DOCKER) build --platform linux/amd64 --target $$target --tag "$(IMAGE)$$suffix:$(VERSION)" \
	        --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
	        --build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" . || exit 1; \
	done

examples: $(VENV)/.test  ## write ops/examples, ops/env.example and the rules' copy anew
	$(BIN)/python -m ops.manifests

locks: $(VENV)/.test  ## resolve what the images hold anew (downloads some 4 GB)
	$(BIN)/python -m ops.image.locks

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
