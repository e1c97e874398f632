# Everything runs in .venv, made from setup.cfg and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and exactly, so that nothing else pulls another build of it.
TORCH := $(shell grep '^torch==' constraints.txt)
# For example TORCH_ARGS="--index-url <address of PyTorch's CPU builds>" where pip's default would bring CUDA.
TORCH_ARGS ?=

.PHONY: demo test test-all test-gpu check clean docs render bench-gpu wheel

PIP = $(BIN)/python -m pip install --quiet -c constraints.txt

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) $(TORCH_ARGS) $(TORCH)
	touch $@

# what the demo needs: the package and the photographs
$(VENV)/.demo: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) -e '.[samples]'
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) -e '.[dev]'
	touch $(VENV)/.demo $@

demo: $(VENV)/.demo  ## tokenize sample photographs with the embedded checkpoint
	$(BIN)/python -m demo.demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test: $(VENV)/.installed  ## what a change is tried with, in minutes
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed  ## the whole suite: compilers, ONNX, processes of their own, a browser, full grids
	$(PYTEST)

# On a GPU machine whose own environment has torch and triton: make test-gpu BIN=/usr/bin (or wherever python is).
test-gpu:  ## the Triton kernels and generators on a CUDA device; skipped with the reason where there is none
	$(BIN)/python3 -m pytest -rs tests/lgq_hf/kernels tests/lgq_hf/generation/test_on_gpu.py tests/lgq_hf/evaluation/test_on_gpu.py

bench-gpu: test-gpu  ## the same, then the assignment op measured, and the tables of lgq_hf/kernels/README.md
	$(BIN)/python3 -m benchmarks.run assignment --device cuda
	$(BIN)/python3 -m benchmarks.tables

check: $(VENV)/.installed  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/.installed  ## builds the package, and uses the wheel in an empty environment, outside of the checkout
	$(BIN)/python -m tests.check_wheel --torch-args "$(TORCH_ARGS)"

docs: $(VENV)/.installed  ## the documentation as a site, with the API from the docstrings, in site/
	$(BIN)/zensical build

render: $(VENV)/.installed demo  ## README, its picture and cards from results/*.json
	cp demo/reconstruction.png docs/images/reconstruction.png
	$(BIN)/python -m model_cards.picture lgq-tiny demo/reconstruction.png
	$(BIN)/python -m demo.demo --model model_cards/lgq-16k -o demo/lgq-16k.png
	$(BIN)/python -m model_cards.picture lgq-16k demo/lgq-16k.png
	$(BIN)/python -m model_cards.render
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) site .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
