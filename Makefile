# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
SAMPLES ?= 10000
PARAMS ?=
NOTEBOOKS ?= $(filter-out notebooks/explore.ipynb,$(wildcard notebooks/*.ipynb))
PAGES = $(addprefix book/experiments/,$(notdir $(NOTEBOOKS)))
ENCODINGS ?=
LAB ?=
BOOK := book/_build/html/index.html

.DEFAULT_GOAL := help
.PHONY: help nope test test-slow attack audit check book experiments pages site-check bench gpu-check lab clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo "make nope SAMPLES=1000              a quick look"
	@echo "make nope PARAMS='-p seed 7 -p corpus python-stdlib'   any parameter of the notebook"
	@echo "make experiments NOTEBOOKS=notebooks/nope.ipynb PARAMS='-p seed 7'   some pages only; each must have the parameters"

# What the main job, the notebooks and the site run on. Modules are compiled when first imported, and most never are.
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it with PYTHON=, as in: make nope PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(INSTALL) .
	@touch $@

# Tests and checks need more: Ray, lm-evaluation-harness, trackers, linters, independent references.
.venv/.dev: .venv/.ready
	@echo "Adding what the tests need (once, about a minute) ..."
	@$(INSTALL) '.[dev]'
	@touch $@

nope: .venv/.ready  ## train RoPE and NoPE, show what differs (SAMPLES=1000 for a quick look)
	@mkdir -p runs
	$(BIN)/papermill notebooks/nope.ipynb runs/nope.ipynb -p samples $(SAMPLES) $(PARAMS)
	@$(BIN)/jupyter nbconvert --log-level ERROR --to html --no-input runs/nope.ipynb
	@$(BIN)/python -m pe_core.site.publish show runs/nope.ipynb
	@echo "Tables and figures: runs/nope.html"

test: .venv/.dev  ## the tests (a few minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadfile

test-slow: .venv/.dev  ## those that compile, start kernels or processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n auto --dist loadfile --ignore=tests/site/test_site.py

attack: .venv/.dev  ## bad input, write errors, damaged files and kills, all of each (about an hour); `make test` takes a sample
	PE_ATTACK=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal tests/attack tests/site/test_parameters.py -s

audit: .venv/.dev  ## known vulnerabilities of what constraints.txt pins, where pypi.org answers; none is waived
	@test -x $(BIN)/pip-audit || $(BIN)/pip install --quiet pip-audit || echo "pip-audit cannot be had here"
	@-$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off >.venv/audit 2>&1
	@echo "vulnerabilities: $$(grep -c == constraints.txt) packages, $$(grep -c 'not found on PyPI' .venv/audit) not known to the index"
	@! grep -A 99 -E '^Found [0-9]+ known' .venv/audit || { cat .venv/audit; exit 1; }

check: .venv/.dev audit  ## format, lint, types, imports, clean notebooks, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb notebooks/pages/*.ipynb

book: .venv/.ready  ## build the site
	$(BIN)/jupyter-book build book/ -W -n --keep-going
	@echo "Open $(BOOK)"

experiments: .venv/.ready  ## run every notebook into the book, as published (or those of NOTEBOOKS)
	@for notebook in $(NOTEBOOKS); do \
	  $(BIN)/papermill $$notebook book/experiments/$$(basename $$notebook) $(PARAMS) || exit 1; done
	$(BIN)/python -m pe_core.site.publish clean $(PAGES)
	$(BIN)/python -m pe_core.site.publish picture book/experiments/ranking.ipynb 0 book/images/ranking.svg
	$(BIN)/python -m pe_core.site.publish records runs book/records $(PAGES)
	@if [ -d runs/throughput ] && [ -n "$(filter %/speed.ipynb,$(NOTEBOOKS))" ]; then cp runs/throughput/*.json book/records/throughput/; fi
	@$(MAKE) --no-print-directory pages

site-check: .venv/.dev book  ## open every page of the site in headless Chromium (the system's own)
	@$(INSTALL) '.[dev,site]'
	PE_SITE=$(dir $(BOOK)) $(BIN)/pytest -m slow -n auto tests/site/test_site.py

pages: .venv/.ready  ## make the site's own pages and README's tables; RUNS=runs shows your own runs too
	$(BIN)/python -m pe_core.site.pages $(ENCODINGS) $(if $(RUNS),--runs $(RUNS))
	$(BIN)/python -m pe_core.site.readme

lab: .venv/.ready  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks $(LAB)

bench: .venv/.dev  ## how fast is training, beside what else there is (BENCH=--short: two minutes)
	$(BIN)/python benchmarks/throughput.py $(BENCH)

gpu-check: .venv/.ready  ## does a GPU compute what the CPU does, and how fast (a few minutes)
	$(BIN)/python -m pe_core.studies.throughput.gpu_check

clean:  ## remove what was built; runs/ stays
	rm -rf .venv book/_build *.egg-info
