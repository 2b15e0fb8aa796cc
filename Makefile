# make train   from a fresh clone to a VGG trained on Fashion-MNIST
# make test    every check that a change must pass
# make torture all checks of what a kill, a fault or a damage may do to a run, some 40 minutes at most
# make bench   measure what the README shows, on this machine
# ARGS="..." adds flags to `vgg train`, PYTHON=... chooses the interpreter (3.11 to 3.13).

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: bench gpu train test torture setup data lint types tests clean

train: setup data
	@if [ -f .venv/.no-data ]; then data="--data fashion-mnist-sample"; fi; $(BIN)/vgg train $$data $(ARGS)

test: setup data lint types tests

setup: .venv/.installed

.venv/.installed: requirements.txt requirements-peers.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"expected Python 3.11 to 3.13, got {v.major}.{v.minor}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps -r requirements-peers.txt
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Where Fashion-MNIST cannot be had, the sample in the package takes its place, and every run says so.
data: setup
	@rm -f .venv/.no-data; $(BIN)/vgg data fetch fashion-mnist || touch .venv/.no-data

# The rows behind the README's table; on a CUDA GPU, its rows.
bench: setup data
	$(BIN)/python benchmarks/quick_accuracy.py --save
	$(BIN)/python benchmarks/train_speed.py --save
	$(BIN)/python benchmarks/memory.py --save
	$(BIN)/python benchmarks/table.py

# On a CUDA GPU, in some 8 minutes: its tests and the rows of the documents. PYTHON has torch for CUDA and pytest.
GPU := PYTHONPATH=src:$$PYTHONPATH $(PYTHON)
gpu:
	$(GPU) -m pytest -q -p no:cacheprovider tests/engines/test_gpu.py
	$(GPU) benchmarks/gpu_speed.py --save
	$(GPU) benchmarks/memory.py --repeats 1 --save
	$(GPU) benchmarks/quick_accuracy.py --seeds 3 --save
	$(GPU) benchmarks/quick_accuracy.py --recipe d2l --seeds 3 --save
	$(GPU) benchmarks/table.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# A process for each core, of one thread each: two that train with two threads each wait for each other.
tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# Every call killed or made to fail, every bit flipped, 200 kills at random; prints how many.
torture: setup
	VGGKIT_KILLS=200 $(BIN)/pytest -m torture -s

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
