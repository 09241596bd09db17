# make demo | test | lint | docs: each makes the virtual environment it needs, with uv where there
# is one, else venv and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two cores are assumed; libraries that start a thread a core of a big machine only get in each
# other's way.
THREADS := OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2

JAX ?= 0.9
# files for `make test-slow`; all where it is empty
TESTS ?=

.PHONY: demo quick-demo wheel-demo notebooks gpu-data lint docs clean
.PHONY: test test-all test-slow test-oldest test-newest test-jax

SMALL := --method curvature --per-class 20 --steps 20

demo: $(VENV)/.installed
	$(THREADS) $(BIN)/ntk-tt verify --method curvature --plot out/demo.png --json out/demo.json

quick-demo: $(VENV)/.installed
	$(THREADS) $(BIN)/ntk-tt verify $(SMALL) \
	  --plot out/quick-demo.png --json out/quick-demo.json

# The same from the wheel, in an environment that has nothing else.
wheel-demo:
	rm -rf .venv-wheel out/wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir out/wheel .
	.venv-wheel/bin/python -m pip install --quiet out/wheel/*.whl
	cd out && $(THREADS) ../.venv-wheel/bin/ntk-tt verify $(SMALL) \
	  --plot wheel-demo.png --json wheel-demo.json

# Most of what tests cost is compilation. `make test-all` compiles as users' programs are compiled.
test: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest --fast-compilation -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest --fast-compilation -m "slow and not nightly" $(TESTS)

test-all: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest

# The .ipynb files, with outputs, from the scripts beside them.
notebooks: $(VENV)/.installed
	$(THREADS) $(BIN)/python -m tools.notebooks

# What `benchmarks/gpu.sh` needs besides code: about 25 MiB in benchmarks/gpu-data, to be carried
# to the GPU.
gpu-data: $(VENV)/.installed
	$(BIN)/python -m tools.gpu_data

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The pages of docs/ as a site, in out/site. A link that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --quiet --strict

# The lower bounds of pyproject.toml, in an environment of their own.
test-oldest:
	$(MAKE) VENV=.venv-oldest CONSTRAINTS="--constraint tests/oldest.txt" test

# The newest Python and the newest releases (tests/newest.sh says where they come from).
test-newest:
	$(THREADS) bash tests/newest.sh

# The facts about JAX that are not documented, and all that rests on them, with another version:
# make test-jax JAX=0.9
test-jax:
	$(PYTHON) -m venv .venv-jax-$(JAX)
	.venv-jax-$(JAX)/bin/python -m pip install --quiet -e '.[dev]' "jax==$(JAX).*" "jaxlib==$(JAX).*"
	$(THREADS) .venv-jax-$(JAX)/bin/python -m pytest tests/test_jaxpr.py tests/test_structured.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
	  f"ntk-tt needs Python 3.11 or newer; this is {v}. Try: make PYTHON=python3.12 ...")'
	@if command -v uv >/dev/null; then uv venv --quiet --python $(PYTHON) $(VENV); \
	  else $(PYTHON) -m venv $(VENV); fi

# What to install, such as '.[dev]', behind it.
install = if command -v uv >/dev/null; \
	  then uv pip install --quiet --python $(BIN)/python $(CONSTRAINTS) -e $(1); \
	  else $(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e $(1); fi

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	@$(call install,'.[dev]')
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	@$(call install,'.[docs]')
	@touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-jax-* .newest out .pytest_cache .ruff_cache
