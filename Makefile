# Every target works as the first command in a fresh clone: the environment is built when it is missing, and
# again when a requirements file has changed. ARGS reaches the program: make run ARGS="--l1-size-gb 8".

VENV   := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
RUN    := $(VENV)/.installed-run
DEV    := $(VENV)/.installed-dev
DEMO   := $(VENV)/.installed-demo

.DEFAULT_GOAL := help
.PHONY: help run test soak compat check format bench demo clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: $(RUN) ## start Redis, the engine and gunicorn; Ctrl-C stops them (ARGS="--l1-size-gb 8" adds flags)
	@exec ./larder server $(ARGS)

test: $(DEV) ## the test suite, about five minutes on two cores (ARGS="-k quota" narrows it)
	@exec $(PYTHON_IN_VENV) -m pytest -n 4 --dist loadfile $(ARGS)

soak: $(DEV) ## the long campaigns: crashes, outages, random histories, foreign clients
	@exec $(PYTHON_IN_VENV) -m pytest -m soak --timeout 1200 $(ARGS)

compat: $(DEV) ## the unmodified lmcache client against a running Larder; makes .venv-compat for it
	@tests/compat/make_env.sh
	@exec $(PYTHON_IN_VENV) -m pytest -m soak --timeout 1200 tests/compat $(ARGS)

check: $(DEV) ## lint, format, types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(DEV) ## rewrite the sources in the project's format
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: $(DEV) ## measure, each row beside its yardstick (ARGS="copies" runs one)
	@exec $(PYTHON_IN_VENV) -m bench $(ARGS)

demo: $(DEMO) ## a real transformer continues a prompt from cached KV, with the same tokens
	@exec $(PYTHON_IN_VENV) -m demo $(ARGS)

clean: ## remove the environment and the tools' caches; the data directory stays
	rm -rf $(VENV) .venv-compat .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN): requirements.txt
	@tools/install.sh $(VENV) requirements.txt
	@touch $@

$(DEV): $(RUN) requirements-dev.txt
	@tools/install.sh $(VENV) requirements-dev.txt
	@touch $@

$(DEMO): $(RUN) demo/requirements.txt
	@tools/install.sh $(VENV) demo/requirements.txt
	@touch $@
