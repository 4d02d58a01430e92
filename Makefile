# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SETUP := .venv/.set-up

# A process a core: with more threads in each, they would wait for one another. Quick tests have one process more, since
# some wait for a server or a file; slow ones measure times.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --dist worksteal -n
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN || echo 1)

# requirements/ names every file that may be installed, by its digest. They are complete: pip looks for nothing else.
LOCKED := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes

.PHONY: demo test test-slow test-all looks lint bench gpu-check conformance docs site lock clean

# xfeat/ holds links to the four folders. Where symbolic links are turned off, git writes each as a text file.
LINKS := xfeat/featurize xfeat/head xfeat/export xfeat/serve
UNLINKED := $(filter-out $(patsubst %/.,%,$(wildcard $(LINKS:%=%/.))),$(LINKS))
define NO_LINKS
this clone has no symbolic links: $(UNLINKED)
  fix:      git config core.symlinks true && git checkout -- xfeat
            On Windows, turn on developer mode before

endef
ifneq ($(UNLINKED),)
$(error $(NO_LINKS))
endif

# For a Python or a system for which a pinned release has no files.
define NOT_LOCKED
one of the releases in requirements/dev.txt cannot be installed here
  fix:      make $(MAKECMDGOALS) NEWEST=1 takes the newest releases instead, without checking their digests
endef
export NOT_LOCKED

demo: $(SETUP)
	@mkdir -p demo
	@printf "\n\033[1m%s\033[0m%s\n" "1/4  features, computed once" "      xfeat featurize ../data"
	@cd demo && ../$(BIN)/xfeat featurize ../data
	@printf "\n\033[1m%s\033[0m%s\n" "2/4  a head, trained on them" "       xhead train"
	@cd demo && ../$(BIN)/xhead train
	@printf "\n\033[1m%s\033[0m%s\n" "3/4  one file, checked" "             xexport onnx"
	@cd demo && ../$(BIN)/xexport onnx
	@printf "\n\033[1m%s\033[0m%s\n" "4/4  an answer for unseen pictures" "  xserve predict ../data/test/…"
	@cd demo && ../$(BIN)/xserve predict $$(ls ../data/test/*/*.jpg | sed -n '1p;$$p')
	@printf "\n%s\n" "The report: demo/runs/latest/report.html     The page: cd demo && ../$(BIN)/xserve start"

# Before each commit.
test: $(SETUP)
	$(PYTEST) $(shell expr $(CORES) + 1) -m "not slow"

# The rest. Pytest's exit code 5 says that there was nothing to run.
test-slow: $(SETUP)
	$(PYTEST) auto -m "slow and not looks" || test $$? -eq 5

# Changes 1,000 files of each kind, others each time, where test-slow changes the same 20.
test-all: $(SETUP)
	FUZZ_CASES=1000 $(PYTEST) auto

# After a change of how a page looks: new pictures of those that differ from tests/looks. Look at them before the commit.
looks: $(SETUP)
	XFEAT_LOOKS=1 $(PYTEST) auto tests/looks
	git status --short tests/looks

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive featurize head export serve xfeat docs deploy
	$(BIN)/python docs/licences.py

bench: $(SETUP) demo/model.onnx
	@for file in $(filter-out benchmarks/gpu_check.py,$(wildcard benchmarks/*.py)); do printf "\n== %s\n" "$$file"; $(BIN)/python $$file || exit 1; done

gpu-check: $(SETUP)
	$(BIN)/python benchmarks/gpu_check.py

conformance: $(SETUP) demo/model.onnx
	$(BIN)/python benchmarks/export_conformance.py

demo/model.onnx:
	$(MAKE) demo

docs: $(SETUP)
	$(BIN)/python docs/commands.py
	$(BIN)/python docs/stub.py
	$(BIN)/python docs/licences.py --write

# Strict: a link that leads nowhere, or a page that the navigation lacks, fails the build.
site: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html: look at it with $(BIN)/mkdocs serve"

# After a change of the dependencies: what is pinned stays pinned. UPGRADE=1 takes the newest releases of everything.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-strip-extras $(if $(UPGRADE),--upgrade)

lock: $(SETUP)
	$(COMPILE) pyproject.toml --extra dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra serve --extra dicom --extra sign --constraint requirements/dev.txt \
		--output-file requirements/serve.txt
	$(COMPILE) pyproject.toml --extra serve-gpu --extra dicom --extra sign --constraint requirements/dev.txt \
		--output-file requirements/serve-gpu.txt
	echo setuptools | $(COMPILE) - --constraint requirements/dev.txt --output-file requirements/build.txt

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp makes the set-up run again when the dependencies change, and only then.
$(SETUP): pyproject.toml requirements/build.txt requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version): run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv: the first time this takes minutes and about 6 GB, most of it torch with CUDA"
	$(PYTHON) -m venv .venv
ifdef NEWEST
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
else
	@# The build tool first, since pip would otherwise fetch one for a source archive, without a digest.
	$(LOCKED) -r requirements/build.txt
	$(LOCKED) --use-pep517 --no-build-isolation -r requirements/dev.txt || { echo "$$NOT_LOCKED"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@# pip would compile on one core. Some packages bring files for other Pythons: what they print is of no use here.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib || true
	@touch $(SETUP)
