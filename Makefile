# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SETUP := .venv/.set-up

.PHONY: demo test lint bench clean

demo: $(SETUP)
	@mkdir -p demo
	@echo "\n\033[1m1/4  features, computed once\033[0m      xfeat featurize ../data"
	@cd demo && ../$(BIN)/xfeat featurize ../data
	@echo "\n\033[1m2/4  a head, trained on them\033[0m       xhead train"
	@cd demo && ../$(BIN)/xhead train
	@echo "\n\033[1m3/4  one file, checked\033[0m             xexport onnx"
	@cd demo && ../$(BIN)/xexport onnx
	@echo "\n\033[1m4/4  an answer for unseen pictures\033[0m  xserve predict ../data/test/…"
	@cd demo && ../$(BIN)/xserve predict $$(ls ../data/test/*/*.jpg | sed -n '1p;$$p')
	@echo "\nThe report: demo/runs/latest/report.html     The page: cd demo && ../$(BIN)/xserve start"

test: $(SETUP)
	$(BIN)/pytest

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(SETUP)
	@for file in benchmarks/*.py; do echo "\n== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp makes the set-up run again when the dependencies change, and only then.
$(SETUP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version): run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv: the first time this takes minutes and about 6 GB, most of it torch with CUDA"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(SETUP)
