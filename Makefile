# The commands of the project. Each sets up what it needs; `make serve` and `make test` work in a fresh clone.
PYTHON ?= python3
PIP_ARGS ?=
PORT ?= 3000
VENV := .venv
BIN := $(VENV)/bin
# pip would compile what it installs on one core, half of its time. Some packages ship files that do not compile.
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# A test file at a time on each core, each with one thread: two threads of two files at once are slower.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export BENTOML_DO_NOT_TRACK = True

# equal_numbers compares two states of the project: it is run by hand; cluster_* and painted_* are parts of others
BENCHMARKS := $(filter-out __init__ common equal_numbers cluster_% painted_%,$(basename $(notdir $(wildcard benchmarks/*.py))))

.PHONY: help setup serve train test long check format bench rehearsal tiny lock protos

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(VENV)/serve.done  ## set up what the service needs

train: $(VENV)/dev.done  ## set up what training needs

serve: $(VENV)/serve.done  ## set up and serve on port 3000 (PORT=...)
	$(BIN)/bentoml serve --port $(PORT)

test: $(VENV)/dev.done  ## set up and run the tests
	$(PYTEST) -m "not long"

long: $(VENV)/dev.done  ## run the tests that take long, which `make test` leaves out
	$(PYTEST) -m long

check: $(VENV)/dev.done  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not long"

format: $(VENV)/dev.done  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.done  ## run the benchmarks; results go to benchmarks/results
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || echo "$$name failed"; done

rehearsal: $(VENV)/dev.done  ## run the deployment on this machine and break it, part by part (docs/deploy.md)
	$(BIN)/python -m deploy.rehearsal

tiny: $(VENV)/dev.done  ## train the whole built-in family; hours on two cores, resumable
	$(BIN)/python -m tiny.build

lock:  ## write requirements/*.txt anew from pyproject.toml
	$(PYTHON) requirements/lock.py

protos: $(VENV)/dev.done  ## generate the gRPC code anew from service/protos
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. service/protos/*.proto

$(VENV)/serve.done: requirements/serve.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) $(PIP_ARGS) -r requirements/serve.txt
	@$(COMPILE)
	touch $@

$(VENV)/dev.done: requirements/dev.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) $(PIP_ARGS) -r requirements/dev.txt
	@$(COMPILE)
	touch $@ $(VENV)/serve.done
