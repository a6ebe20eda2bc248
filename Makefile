# make demo   see the program cluster real cells        make test   run the tests
# Both make .venv from constraints.txt when it is missing. The rest is for developers.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
PIP_ARGS ?=
BIN := .venv/bin
# A process for each core; tests of one file share their fixtures, and so a process.
PARALLEL := -n logical --dist loadfile
# Files of tests in memory where there are 4 GB for them: most of the time of the fast tests was the disk's.
IN_MEMORY := $(shell [ -w /dev/shm ] && [ "$$(df -Pk /dev/shm | awk 'NR == 2 {print $$4}')" -gt 4000000 ] \
	&& echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
READY := .venv/.ready

.PHONY: demo test slow long fuzz million lint docs coverage image image-test clean

demo: $(READY)
	$(BIN)/scamac-scale demo --out demo-out

test: $(READY)
	$(IN_MEMORY) $(BIN)/python -m pytest $(PARALLEL)

slow: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not gpu and not long"

# minutes each: the wheel in an empty environment, hundreds of damaged files
long: $(READY)
	$(BIN)/python -m pytest -m "long and not gpu"

# damaged and crafted files: make fuzz MUTANTS=2000 SEED=7
MUTANTS ?= 200
SEED ?= 0
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --mutants $(MUTANTS) --seed $(SEED)

# A million cells resampled from labelled counts of yours, and the cost of each stage: make million FROM=cells.h5ad LABEL=cell_type CELLS=1000000
# Resampled cells serve for time and memory; they are no evidence for how well clusters fit new cells.
FROM ?=
LABEL ?= cell_type
CELLS ?= 1000000
million: $(READY)
	$(BIN)/python benchmarks/atlas.py $(if $(FROM),--source $(FROM) --label $(LABEL),--types 20) --cells $(CELLS) --out million.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the pages of docs/ as a site, in site/; a link that leads nowhere is an error. Needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

# The image, by the first of these that answers: make image IMAGE_ARGS="--build-arg EXTRAS=gpu,s3"; image-test builds one and runs it.
ENGINE ?= $(shell for e in docker podman buildah; do "$$e" info >/dev/null 2>&1 && echo "$$e" && break; done)
IMAGE_ARGS ?=
IMAGE_TEST_ARGS ?=
image:
	@test -n "$(ENGINE)" || { echo "error: none of docker, podman and buildah is here and answers; install one, or name it: make image ENGINE=podman" >&2; exit 2; }
	$(ENGINE) build $(IMAGE_ARGS) -t scamac-scale .

image-test: $(READY)
	$(BIN)/python -m tests.image $(IMAGE_TEST_ARGS)

clean:
	rm -rf demo-out site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# --no-build-isolation: the build backend then comes from constraints.txt too.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on the PATH; install one, or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -q -c constraints.txt hatchling editables
	$(BIN)/python -m pip install $(PIP_ARGS) -q -c constraints.txt --no-build-isolation -e ".[cpu,dask,dev,docs,loess,s3]"
	touch $(READY)
