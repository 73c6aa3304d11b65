# Every target sets up what it needs first; the first time takes minutes and says what it is doing, later ones a moment.
#
#   WORLD=newest      the newest vendor SDKs instead of the stable set (requirements/README.md)
#   PYTHON=python3.13 another interpreter, in an environment of its own
#   SUITE=providers   only the tests that meet a vendor SDK at the wire
#   ARGS="-k breaker" passed on to the program that is run
#   LIVE=1            the demo talks to real vendors, with the keys in your environment
#   SOAK=30 SEED=123  how many minutes each part of `make soak` looks for trouble; which find it shows again

.SHELLFLAGS := -eu -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

WORLD ?= stable
SUITE ?=
ARGS ?=
LIVE ?=
SOAK ?= 10
SEED ?=

# ── which Python, which environment ──────────────────────────────────────────────────────────────────────────────────

version_of = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
supported  = $(filter 3.11 3.12 3.13,$(call version_of,$(1)))

ifeq ($(origin PYTHON),undefined)
  PYTHON := $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(call supported,$(p)),$(p))) python3)
  PYTHON_SUFFIX :=
else
  PYTHON_SUFFIX := -$(call version_of,$(PYTHON))
endif

VENV := .venv$(if $(filter-out stable,$(WORLD)),-$(WORLD))$(PYTHON_SUFFIX)
RUN  := $(VENV)/bin/python
export LLM_FALLBACK_WORLD := $(WORLD)

SOURCES := $(wildcard shared_core langchain_fallback llamaindex_fallback tools benchmarks tests/typing)

# ── targets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

.PHONY: help
help: ## this list
	@echo "make <target>   (Python: $(PYTHON), environment: $(VENV))"; echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F '\t' '{ printf "  %-10s %s\n", $$1, $$2 }'
	@echo; sed -n 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: setup ## watch requests survive an outage, on this machine, without a key (LIVE=1: with yours)
	@$(RUN) -m tools.demo $(if $(LIVE),--live) $(ARGS)

.PHONY: test
test: setup ## the whole suite (WORLD=newest, PYTHON=python3.13, SUITE=providers, ARGS=...)
	@echo "test: world $(WORLD), $$($(RUN) --version), suite $(if $(SUITE),$(SUITE),everything)"
	@$(RUN) -m pytest $(if $(filter providers,$(SUITE)),-m provider,$(if $(SUITE),tests/$(SUITE))) $(ARGS)

.PHONY: soak
soak: setup ## the machines, random worlds, money under kills, callers at the local model, conversations: from new seeds
	@SOAK=$(SOAK) SEED=$(SEED) $(RUN) -m tests.core.soak
	@$(RUN) -m tools.simulation.soak --seeds 10000 --jobs 2 $(if $(SEED),--first $(SEED))
	@SOAK=$(SOAK) SEED=$(SEED) $(RUN) -m tools.money_trials soak
	@$(RUN) -m tools.local_soak $(if $(SEED),--seed $(SEED))
	@SOAK=$(SOAK) SEED=$(SEED) $(RUN) -m tests.history.soak $(ARGS)

.PHONY: faults
faults: setup ## every fault at every wire, sync and async, whole and streamed, also over TLS
	@FAULT_WIRES=openai,anthropic,google $(RUN) -m pytest tests/faults $(ARGS)

.PHONY: check
check: setup ## ruff, mypy --strict, import contracts, exports, README and docs executed
	@echo "check: ruff";             $(RUN) -m ruff check .
	@echo "check: mypy";             $(RUN) -m mypy $(SOURCES)
	@echo "check: import contracts"; $(VENV)/bin/lint-imports
	@echo "check: house rules";      $(RUN) -m pytest -q tests/test_house.py

.PHONY: bench
bench: setup peers ## ours beside the peers, in one run, JSON out
	@PEERS_PYTHON=$(abspath .venv-peers$(PYTHON_SUFFIX)/bin/python) $(RUN) -m benchmarks $(ARGS)

.PHONY: notebooks
notebooks: setup ## execute every notebook, offline
	@$(RUN) -m pytest tests/notebooks $(ARGS)

.PHONY: docs
docs: setup ## execute every Python block of README.md and docs/
	@$(RUN) -m pytest -v tests/test_house.py -k snippets $(ARGS)

.PHONY: evidence
evidence: setup peers ## measure the figures that README.md and docs/ quote
	@PEERS_PYTHON=$(abspath .venv-peers$(PYTHON_SUFFIX)/bin/python) $(RUN) -m tools.evidence $(ARGS)

.PHONY: mutants
mutants: setup ## change the core in small ways and see the tests notice
	@$(RUN) -m tools.mutants $(ARGS)

.PHONY: format
format: setup ## apply ruff's safe fixes
	@$(RUN) -m ruff check --fix .

.PHONY: lock
lock: setup ## write the lock files anew (UPGRADE=1: move every pin to the newest release)
	@$(RUN) -m tools.setup.lock

.PHONY: clean
clean: ## remove caches and results (ENVS=1: the environments too)
	rm -rf .build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks .coverage mutants
	find shared_core langchain_fallback llamaindex_fallback tools benchmarks tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	$(if $(ENVS),rm -rf .venv .venv-*)

# ── set-up ───────────────────────────────────────────────────────────────────────────────────────────────────────────

.PHONY: setup
setup: python ## only set up (the other targets do it by themselves)
	@$(PYTHON) -m tools.setup --world $(WORLD) --venv $(VENV)

.PHONY: peers
peers: python
	@$(PYTHON) -m tools.setup --world peers --venv .venv-peers$(PYTHON_SUFFIX)

.PHONY: python
python:
	@case "$(WORLD)" in stable|newest) ;; *) echo "make: WORLD is stable or newest, not '$(WORLD)'" >&2; exit 2;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: Python 3.11, 3.12 or 3.13 is needed, and '$(PYTHON)' is $$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo absent)." >&2; \
	  echo "hint: install one and name it: make $(or $(MAKECMDGOALS),test) PYTHON=python3.13" >&2; exit 2; }
