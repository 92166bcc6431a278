# make demo: the paper's central result on this machine. make check: what is fast. make test: everything that CI checks.
# make soak: the tests that take minutes each, before a release.
# make findings: docs/findings.md from nothing, in hours; may be interrupted, and goes on where it was.
# make head: a Ray head in this checkout, for `ray job submit -- python jobs/sweep.py`.
# make dashboards: Prometheus and Grafana for that head, where they are installed.
# make docs: pages of the API. make hooks: ruff and pyright before every commit.

PYTHON ?= python3
EXTRA := $(if $(shell command -v nvidia-smi),cuda,cpu)
# uv does not read PIP_FIND_LINKS, which is how a machine with a local torch wheel offers it.
TORCH := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend=auto)
# Relative, and every program as a module of Python: so a blank in the folder's name, or most anything else, does no harm.
PYTHON_IN_VENV := .venv/bin/python
MODULE := $(PYTHON_IN_VENV) -m
INSTALLED := .venv/installed-$(EXTRA)

# The first of these ends a name in PATH, a venv's activate reads the next three, Ray's command line of a worker the rest.
UNBEARABLE := : $$ ` " \ '
ifneq (,$(strip $(foreach letter,$(UNBEARABLE),$(findstring $(letter),$(CURDIR)))))
$(error $(CURDIR) has one of the characters $(UNBEARABLE) in its name, which Python's venv or Ray can't bear: rename it)
endif

.PHONY: demo findings test soak check lint chromium docs hooks head dashboards clean
.NOTPARALLEL:

demo: $(INSTALLED)
	@echo "The demo takes about 9 minutes on 2 CPU cores. Ctrl-C stops it; make demo goes on from there."
	$(PYTHON_IN_VENV) jobs/sweep.py --study demo --store runs --serve

findings: $(INSTALLED)
	$(MODULE) findings run

PYTEST := PYTHONDONTWRITEBYTECODE= $(MODULE) pytest --numprocesses 2
test: chromium lint
	$(MAKE) docs
	$(PYTEST) --dist worksteal -m "not soak" --ignore tests/integration
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not soak" tests/integration
	$(MODULE) benchmarks regression

# Before a release, in some 20 minutes: faults, real models, and whole jobs and studies as users start them.
soak: chromium $(INSTALLED)
	$(PYTEST) --dist loadfile -m soak

# Before every commit: less than three minutes on two cores, without a browser, vLLM or a GPU.
check: lint
	$(PYTEST) --dist worksteal -m "not slow and not soak and not vllm and not gpu" tests/unit

lint: $(INSTALLED)
	$(MODULE) ruff check .
	$(MODULE) ruff format --check .
	$(MODULE) pyright
	$(PYTHON_IN_VENV) .venv/bin/lint-imports --no-cache

# First, so that a user who has to install it by hand learns it at once.
chromium:
	$(PYTHON) tests/fixtures/chromium.py

# The API from its docstrings, for a browser: build/api/rayexp.html. What pdoc warns of is an error. It leaves the modules
# out of packages that say what they offer by __all__, so those are named.
API := rayexp jobs $(subst /,.,$(basename $(wildcard rayexp/tasks/[a-z]*.py rayexp/tasks/strings/[a-z]*.py rayexp/tasks/text/[a-z]*.py rayexp/rewards/[a-z]*.py \
  rayexp/stages/[a-z]*.py rayexp/studies/[a-z]*.py)))
docs: $(INSTALLED)
	PYTHONWARNINGS=error::UserWarning,error::RuntimeWarning \
	  $(MODULE) pdoc --template-directory docs/api --output-directory build/api $(API)

# ruff and pyright before every commit.
hooks: $(INSTALLED)
	$(MODULE) pre_commit install

# In the foreground; Ctrl-C ends it, and nothing else. Only this account can use it, with the token in ~/.ray. It takes
# free ports, in case another Ray on the machine has the usual ones.
head: $(INSTALLED)
	exec env PATH="$$PWD/.venv/bin:$$PATH" RAY_START_HOOK=rayexp.distributed.access.prepare_head RAY_USAGE_STATS_ENABLED=0 \
	  $(MODULE) ray.scripts.scripts start --head --block --dashboard-host=127.0.0.1 \
	  --port=0 --dashboard-agent-listen-port=0 $(HEAD_ARGS)

dashboards:
	exec $(PYTHON) deploy/grafana/run.py

# Bytecode is compiled once here; without it every Ray worker compiles torch, Ray and vLLM again when it starts.
$(INSTALLED): pyproject.toml
	@echo "Setting up .venv with torch, Ray and vLLM ($(EXTRA)): 1 to 3 minutes, 5 GB on disk."
	$(PYTHON) -m venv .venv
	$(MODULE) pip install --quiet uv
	$(MODULE) uv pip install --quiet --compile-bytecode $(TORCH) --editable ".[$(EXTRA),dev]"
	touch $@

clean:
	rm -rf .venv
