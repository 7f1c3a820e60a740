# Every command of the project. `make` alone lists them.
#   GPU=1      an environment whose Horovod reduces with NCCL (needs a CUDA toolkit)
#   ARGS=...   further arguments for the command behind a target

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

python := .venv/bin/python
# With the folder in its name: a copied or moved checkout would otherwise run the code of the first.
stamp := .venv/.stamp-$(if $(GPU),gpu,cpu)$(subst /,+,$(CURDIR))

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

.PHONY: run
run: env ## from raw data to a live endpoint: services up, graph materialised, one prediction
	@.venv/bin/throughline run $(ARGS)

.PHONY: test
test: env ## all tests but the drills, on two processes (ARGS="-n 0": one after another)
	@$(python) -m pytest -q -m "not drill" -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

# One after another: a drill has the machine for itself. MINUTES ends the series early; what has begun is finished.
.PHONY: drill
drill: env ## the long tests, each with its own name (one of them: ARGS="-k soak"; MINUTES=40: as far as that goes)
	@$(python) -m pytest -q -m drill $(if $(MINUTES),--drill-minutes=$(MINUTES)) $(ARGS)

.PHONY: lint
lint: env ## style, formatting, import contracts, types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports
	@.venv/bin/ty check

.PHONY: loadtest
loadtest: env ## load on the running endpoint, held against its service levels
	@$(python) -m loadtests $(ARGS)

.PHONY: bench
bench: env ## measure what the README claims, against its peers, into docs/benchmarks.md
	@$(python) -m benchmarks $(ARGS)

.PHONY: stop
stop: ## stop the local services
	@if [ -x .venv/bin/throughline ]; then .venv/bin/throughline down; else echo "nothing runs: there is no environment"; fi

# State elsewhere (THROUGHLINE_HOME) is not removed: a wrong value there would cost someone's folder.
.PHONY: clean
clean: stop ## stop, then remove .throughline and the caches in this checkout
	@rm -rf .throughline .mutation .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@rm -rf features/*/target features/*/logs features/*/dbt_packages spark-warehouse metastore_db derby.log
	@find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

.PHONY: distclean
distclean: clean ## clean, then remove .venv, too
	@rm -rf .venv

.PHONY: env
env: $(stamp) ## create or update .venv

# The stamp is written by the script, dated at its start: an input edited meanwhile counts as newer.
$(stamp): requirements.lock pyproject.toml deploy/horovod/build.py deploy/environment.sh
	@deploy/environment.sh sync $@ $(if $(GPU),--gpu)

.PHONY: lock
lock: ## resolve pyproject.toml into requirements.lock (newer versions: ARGS=--upgrade)
	@deploy/environment.sh lock $(ARGS)
