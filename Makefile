# Two commands: `make demo` and `make test`. Each makes its own environment first; all it needs is Python >= 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
WORLD ?= numbers
# numbers: runs/demo and runs/shipped; another world: its name behind.
OF_WORLD := $(addprefix -,$(filter-out numbers,$(WORLD)))
RUN_DIR ?= runs/demo$(OF_WORLD)
SHIPPED := runs/shipped$(OF_WORLD)
STEPS ?=
BENCH_DATA ?= runs/bench/data

.PHONY: help env env-demo demo shipped ablations bench test test-slow test-faults test-gpu lint format clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras, so that a second call installs nothing.
$(VENV)/.installed-%: setup.cfg constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

env: $(VENV)/.installed-test  ## make the environment of `make test`

env-demo: $(VENV)/.installed-demo  ## make the environment of `make demo`

demo: env-demo  ## pretrain on a CPU, judge, generate in every modality, write runs/demo/report.html (WORLD=things: another)
	$(BIN)/aromni demo --world $(WORLD) --run-dir $(RUN_DIR) $(if $(STEPS),--steps $(STEPS))

# PyTorch is here only to be compared with. Any build of its version will do; nothing but the CPU is used.
bench: $(VENV)/.installed-demo,torch  ## throughput beside PyTorch, on this CPU; leave the machine alone meanwhile
	$(BIN)/aromni prepare numbers --out $(BENCH_DATA)
	$(BIN)/python benchmarks/throughput.py --data $(BENCH_DATA) --out benchmarks/results/throughput.json

shipped: env-demo  ## train again the checkpoint that comes with the package (half an hour), into runs/shipped (or WORLD=things)
	$(BIN)/aromni prepare $(WORLD) --out $(SHIPPED)/data --examples 160000
	$(BIN)/aromni train --config configs/$(WORLD).py:shipped --run-dir $(SHIPPED)
	$(BIN)/aromni convert $(SHIPPED) $(SHIPPED)/model
	$(BIN)/aromni evaluate --model $(SHIPPED)/model --out $(SHIPPED)/scores

ablations: env-demo  ## what each part of the recipe buys; the report of every demo shows the table
	$(BIN)/aromni prepare numbers --out $(BENCH_DATA)
	$(BIN)/python benchmarks/ablations.py --data $(BENCH_DATA) --out aromni_jax/worlds/numbers/ablations.json

test: env  ## the tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: env  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-faults: env  ## kill, damage, fill up, slow down: real runs that go on nevertheless; writes benchmarks/results/faults.md
	FAULT_TABLE=benchmarks/results/faults.md $(BIN)/python -m pytest -m faults tests/faults

test-gpu: env  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.installed-lint  ## ruff and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy aromni_jax

format: $(VENV)/.installed-lint  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and the demo's run
	rm -rf $(VENV) $(RUN_DIR)
