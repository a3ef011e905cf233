# `make demo` and `make test` do all the set-up; the rest is for working on Insitu.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
ACCEPTANCE := ../shared/acceptance
# Processes that share the tests; each holds torch and the models, about a gigabyte.
WORKERS ?= 2
BUNDLE := src/insitu/widgets/bundles/module_tree.js
NODE := labextension/node_modules/.package-lock.json

.PHONY: demo lab test browser test-all coverage check fix families figures other-notebooks bench bench-remote soak budgets gallery size picture widgets clean

# Run the main job on the demo model: print what it found, write demo.html.
demo: $(VENV)/lab
	$(BIN)/python -m insitu demo --html demo.html
	@echo; echo "Next: make lab opens the quickstart notebook in JupyterLab."

lab: $(VENV)/lab
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

# The specification, the engine's again without its C, the notebooks, and the acceptance suite
# where it is there.
test: $(VENV)/dev $(BUNDLE)
	$(NPM) test --silent
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not network"
	INSITU_PURE_PYTHON=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not network" tests/engine
	$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=120 -W default notebooks
	@if [ -d $(ACCEPTANCE) ]; then \
	  $(BIN)/python -m pytest -W default --rootdir=$(ACCEPTANCE) -p no:cacheprovider -q $(ACCEPTANCE); \
	fi

# Every widget and the quickstart in a real JupyterLab, in Debian's chromium.
browser: $(VENV)/dev $(BUNDLE)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "slow and not gpu and not network" tests/browser

# Everything, the slow stress, soak and browser tests too.
test-all: test
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

# The engine's branches that the fast tests run.
coverage: $(VENV)/dev
	INSITU_PURE_PYTHON=1 $(BIN)/coverage run -m pytest -q -m "not slow and not gpu and not network" tests/engine
	$(BIN)/coverage report --skip-covered

check: $(VENV)/dev $(BUNDLE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/size.py --check
	$(BIN)/python tools/operations.py --check
	$(BIN)/python tools/family_matrix.py --check
	$(NPM) run check --silent

fix: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

size: $(VENV)/dev
	$(BIN)/python tools/size.py

# Families of models x features, as tests; written down in docs/families.md.
families: $(VENV)/dev
	$(BIN)/python tools/family_matrix.py

# The figure of each method in docs/methods.md, drawn by its program there in Debian's chromium.
# `make figures FIGURES="logit_lens steering"` for some of them.
figures: $(VENV)/dev
	$(BIN)/python tools/method_figures.py $(FIGURES)

# Against raw hooks, nnsight, TransformerLens and pyvene, in an environment of its own (2 GB).
# `make bench BENCH="overhead growth --quick"` for some of it.
BENCH ?= --json build/benchmarks.json
bench: .venv-bench/done
	.venv-bench/bin/python -m benchmarks.run $(BENCH)

# What a block costs on a server of this machine, with the bounds of the design beside it.
# `make bench-remote REMOTE="jobs values --quick"` for some of it.
REMOTE ?= --markdown docs/benchmarks.md
bench-remote: $(VENV)/dev
	$(BIN)/python -m benchmarks.remote $(REMOTE)

# A server that is hurt without a pause, and what came of its jobs; the report is printed.
MINUTES ?= 30
soak: $(VENV)/dev
	$(BIN)/python tools/soak.py --minutes $(MINUTES)

# Every budget of the widgets and notebooks beside what is measured; in docs/widgets.md too.
budgets: $(VENV)/dev $(BUNDLE)
	$(BIN)/python tools/budgets.py --write

# Every widget in Notebook 7 and marimo, a row each, in an environment of its own (100 MB).
other-notebooks: $(VENV)/dev $(BUNDLE)
	$(BIN)/python tools/other_notebooks.py

# The pictures of docs/widgets.md, light and dark, in a minute.
gallery: $(VENV)/dev $(BUNDLE)
	$(BIN)/python tools/gallery.py

# The widgets' front ends. An install builds them too, with a node of its own where there is none.
widgets: $(BUNDLE)

$(BUNDLE): $(NODE) $(shell find labextension/src -name '*.ts')
	$(NPM) run build --silent
	@touch $@

$(NODE): labextension/package-lock.json
	$(NPM) ci --ignore-scripts --silent
	@mkdir -p $(@D) && touch $@

# On a machine without node the installed bundles are used as they are.
NPM := $(if $(shell command -v npm),npm --prefix labextension,@echo no npm here, left out: npm)

INSTALL = $(PYTHON) -m venv $(1) && $(1)/bin/pip install --disable-pip-version-check -q -c constraints.txt

# An install is made again when one of these is newer.
INSTALLED_FROM := pyproject.toml constraints.txt hatch_build.py src/insitu/engine/_hot.c

$(VENV)/lab: $(INSTALLED_FROM)
	$(call INSTALL,$(VENV)) torch -e ".[lab]"
	@touch $@

$(VENV)/dev: $(INSTALLED_FROM)
	$(call INSTALL,$(VENV)) torch -e ".[lab,adapters,diffusion,serve,dev]"
	@touch $@ $(VENV)/lab

.venv-bench/done: $(INSTALLED_FROM)
	$(call INSTALL,.venv-bench) torch -e ".[bench]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-bench .venv-other demo.html build dist
