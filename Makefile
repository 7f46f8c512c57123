# The three commands that matter: `make repro`, `make test`, `make check`. Everything lives in .venv.
PYTHON ?= python3
# Relative where make reads it: names of targets and prerequisites cannot hold a blank, folders above a clone can.
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# Containers often set it: each of the pipeline's processes would compile torch's Python anew, ten seconds a start.
unexport PYTHONDONTWRITEBYTECODE
# uv does not read pip's find-links; hand them on, so that a torch wheel lying on disk is taken.
FIND_LINKS = $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(VENV)/bin/pip config get global.find-links 2>/dev/null))

.PHONY: help setup repro demo figures studies ablations test check clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.done: pyproject.toml constraints.txt $(wildcard packages/*/pyproject.toml) studies/pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt uv
	UV_FIND_LINKS="$(FIND_LINKS)" uv pip install -q -c constraints.txt $(foreach p,data model train eval,-e "packages/hope-$(p)") -e studies -r pyproject.toml --group dev
	touch $@

setup: $(VENV)/.done  ## create .venv with the four packages and the tools

repro: setup  ## run the pipeline: corpora, four models with three seeds each, evaluation, report
	@# A killed dvc can leave its table of locks empty; then every dvc command fails.
	@test -s .dvc/tmp/rwlock || rm -f .dvc/tmp/rwlock
	dvc repro
	@echo "report: $(CURDIR)/reports/latest/results.html"

demo: setup  ## train a small HOPE to keep two digits (about a minute), then ask it with its memories on and off
	hope-train compose --run hope --out runs/needle/config.yaml scale=suite task=needle
	hope-train run runs/needle/config.yaml --out runs/needle
	hope-model recall runs/needle/checkpoint

# A run of the pipeline changes none of these: they are what README shows, and git keeps them.
figures:  ## copy the report and its pictures to where README shows them
	sed '/plots\/inside.png/,+1d' reports/latest/results.md > reports/results.md
	cp $(foreach p,cost differences loss needles sources,reports/latest/plots/$(p).png) reports/plots/

studies ablations: setup  ## train what is missing of the studies of conf/study, then write their pages (JOBS=2, FOLLOW_UPS=1, ONLY=...)
	dvc repro data
	hope-study run --jobs $(or $(JOBS),2) $(if $(FOLLOW_UPS),--follow-ups) $(if $(ONLY),--only $(ONLY))
	hope-study report

test: setup  ## run every test
	pytest -q -n 2

check: setup  ## lint, types, import direction
	ruff check . && ruff format --check . && mypy && lint-imports

clean:  ## remove the environment and what the pipeline made (the DVC cache stays)
	rm -rf $(VENV) data runs
