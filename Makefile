# make demo: the paper's central result on this machine. make test: everything that CI checks.
# make head: a Ray head in this checkout, for `ray job submit -- python jobs/sweep.py`.
# make docs: pages of the API. make hooks: ruff and pyright before every commit.

PYTHON ?= python3
EXTRA := $(if $(shell command -v nvidia-smi),cuda,cpu)
# uv does not read PIP_FIND_LINKS, which is how a machine with a local torch wheel offers it.
TORCH := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend=auto)
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/installed-$(EXTRA)

.PHONY: demo test docs hooks head clean

demo: $(INSTALLED)
	$(BIN)/python jobs/sweep.py --study demo --store runs

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(MAKE) docs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --ignore tests/integration
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest tests/integration

# The API from its docstrings, for a browser: build/api/rayexp.html. What pdoc warns of is an error. It leaves the modules
# out of packages that say what they offer by __all__, so those are named.
API := rayexp jobs $(subst /,.,$(basename $(wildcard rayexp/world/[a-z]*.py rayexp/studies/[a-z]*.py)))
docs: $(INSTALLED)
	PYTHONWARNINGS=error::UserWarning,error::RuntimeWarning \
	  $(BIN)/pdoc --template-directory docs/api --output-directory build/api $(API)

# ruff and pyright before every commit.
hooks: $(INSTALLED)
	$(BIN)/pre-commit install

# In the foreground; Ctrl-C ends it, and nothing else. It listens on loopback only, so it needs no tokens.
head: $(INSTALLED)
	PATH="$(BIN):$$PATH" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 \
	  $(BIN)/ray start --head --block --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 $(HEAD_ARGS)

# Bytecode is compiled once here; without it every Ray worker compiles torch, Ray and vLLM again when it starts.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode $(TORCH) --editable ".[$(EXTRA),dev]"
	touch $@

clean:
	rm -rf .venv
