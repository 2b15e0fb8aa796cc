# make train   from a fresh clone to a VGG trained on Fashion-MNIST
# make app     the workbench as a page in the browser
# make test    every check that a change must pass
# make torture all checks of what a kill, a fault or a damage may do to a run, some 40 minutes at most
# make bench   measure what the README shows, on this machine
# make dist    the files to publish, installed into an empty environment and tried there
# make docs    the documentation as a site, in site/
# make gallery the pictures of docs/uses.md, and in gallery/ what its commands need
# ARGS="..." adds flags to `vgg train`, PYTHON=... chooses the interpreter (3.11 to 3.13).

PYTHON ?= python3
# The program's own environment, and one for development on top of it, which sees its packages and has more.
BIN := .venv/bin
DEV := .venv-dev/bin
ARGS ?=
# Otherwise each of the hundreds of processes that the tests start compiles the modules of torch anew, in seconds.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: app bench gpu train test torture setup dev data lint types tests dist docs gallery clean

train: setup data
	@if [ -f .venv/.no-data ]; then data="--data fashion-mnist-sample"; fi; $(BIN)/vgg train $$data $(ARGS)

app: setup
	@$(BIN)/python -c 'import starlette, uvicorn' 2> /dev/null || \
	$(BIN)/python $(INSTALL) --constraint requirements-dev.txt starlette uvicorn
	@$(BIN)/vgg app $(ARGS)

test: dev data lint types tests

setup: .venv/.installed
dev: .venv-dev/.installed

# Modules are compiled at their first import: of the 30,000 that are installed, a few thousand are ever imported.
.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"expected Python 3.11 to 3.13, got {v.major}.{v.minor}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) --no-compile -r requirements.txt --editable .
	@touch $@

# The peers lie apart, where only benchmarks/peers.py finds them: beside a CPU build of torch, torchvision cannot be
# imported as it is, and other libraries take a torchvision that is there for one that works.
.venv-dev/.installed: .venv/.installed requirements-dev.txt requirements-peers.txt
	$(BIN)/python -m venv --clear .venv-dev
	@program=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(DEV)/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'program.pth').write_text('$$program')"
	$(BIN)/python $(INSTALL) --no-compile --no-deps --upgrade --target .venv-dev/peers -r requirements-peers.txt & peers=$$!; \
	$(DEV)/python $(INSTALL) --no-compile -r requirements-dev.txt && wait $$peers
	$(DEV)/python $(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# Where Fashion-MNIST cannot be had, the sample in the package takes its place, and every run says so.
data: setup
	@rm -f .venv/.no-data; $(BIN)/vgg data fetch fashion-mnist || touch .venv/.no-data

# The rows behind the README's table; on a CUDA GPU, its rows.
bench: dev data
	$(DEV)/python benchmarks/quick_accuracy.py --save
	$(DEV)/python benchmarks/train_speed.py --save
	$(DEV)/python benchmarks/memory.py --save
	$(DEV)/python benchmarks/table.py

# On a CUDA GPU, in some 8 minutes: its tests and the rows of the documents. PYTHON has torch for CUDA and pytest.
GPU := PYTHONPATH=src:$$PYTHONPATH $(PYTHON)
gpu:
	$(GPU) -m pytest -q -p no:cacheprovider tests/engines/test_gpu.py
	$(GPU) benchmarks/gpu_speed.py --save
	$(GPU) benchmarks/memory.py --repeats 1 --save
	$(GPU) benchmarks/quick_accuracy.py --seeds 3 --save
	$(GPU) benchmarks/quick_accuracy.py --recipe d2l --seeds 3 --save
	$(GPU) benchmarks/table.py

lint: dev
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .

types: dev
	$(DEV)/mypy

# Processes of one thread each, since two that train with two threads each wait for each other; one more than there are
# cores, since some tests wait for processes of their own. Files in their order, which ends with the short ones of src/:
# xdist's own ends with those of few and long tests. torchrun is in the program's environment.
tests: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(DEV)/pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder

# Every call killed or made to fail, every bit flipped, 200 kills at random; prints how many.
torture: dev dist
	PATH="$(CURDIR)/$(BIN):$$PATH" VGGKIT_KILLS=200 $(DEV)/pytest -m torture -s

# The sdist, the wheel made of it, and the quick start with that wheel in an environment that has nothing else.
dist: dev
	rm -rf dist .venv-dist && mkdir dist
	$(DEV)/python -c 'from flit_core.buildapi import build_sdist; build_sdist("dist")'
	$(DEV)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/vggkit-*.tar.gz
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python $(INSTALL) --no-compile dist/vggkit-*.whl
	cd .venv-dist && bin/vgg describe vgg11/4 && bin/vgg train --data fashion-mnist-sample --epochs 1 --out run && \
	bin/vgg predict run ../docs/pictures/ankle-boot.png
	rm -rf .venv-dist

docs: dev
	$(DEV)/python docs/site.py

gallery: dev
	$(DEV)/python docs/gallery.py gallery

clean:
	rm -rf .venv .venv-dev .venv-dist .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site
