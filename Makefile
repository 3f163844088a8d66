# PIP_FLAGS goes to every pip install. torch comes from where pip finds it: from PyPI that is the CUDA build
# (gigabytes). For the CPU build: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
DEMO_OUT ?= demo-out
# Test processes side by side, one thread each: two of them with two threads each would wait for each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest
BIN := .venv/bin
STAMP := .venv/.installed
PROTOS := protos/fedseg/v1/federation.proto
SOURCES := fedseg tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format proto clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## set up .venv with everything that is needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fedseg needs Python 3.11 or later; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## run a whole study on made-up brains, three sites on this machine
	$(BIN)/fedseg demo --out $(DEMO_OUT)

test: $(STAMP) ## run the tests
	$(PYTEST) -m "not slow" -n $(WORKERS) --dist loadgroup

test-slow: $(STAMP) ## run the tests that take long, and look for further examples that fail
	$(PYTEST) -m slow
	$(PYTEST) -m "hypothesis and not slow" --hypothesis-profile fresh -n $(WORKERS) --dist worksteal

check: $(STAMP) ## format, lint, types, import layers, generated code up to date
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy fedseg tests benchmarks
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory proto PROTO_OUT=$$(mktemp -d)/check CHECK=1

format: $(STAMP) ## format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

PROTO_OUT ?= .
proto: $(STAMP) ## generate the wire's Python code from protos/
	@mkdir -p $(PROTO_OUT)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Ifedseg/rpc/_pb=protos/fedseg/v1 \
	  --python_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) --mypy_out=quiet:$(PROTO_OUT) --mypy_grpc_out=quiet:$(PROTO_OUT) \
	  $(patsubst protos/fedseg/v1/%,fedseg/rpc/_pb/%,$(PROTOS))
ifdef CHECK
	@diff -r -x __init__.py -x __pycache__ $(PROTO_OUT)/fedseg/rpc/_pb fedseg/rpc/_pb && echo "generated code is up to date" \
	  || (echo "fedseg/rpc/_pb differs from protos/: run make proto"; exit 1)
endif

clean: ## remove what the other targets made
	rm -rf .venv $(DEMO_OUT) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
