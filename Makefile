# Two commands for users: `make serve`, `make test`. Every target makes .venv and installs what it needs, and only that.

.DEFAULT_GOAL := help
.PHONY: help serve test lint format bench export train evaluate clean
SHELL := /bin/bash

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
NAME ?= cifar100-vits14
BUNDLE := models/zoo/$(NAME)
# For `make train` and `make evaluate`: a folder of parquet files in the hub's schema, an image folder or a hub name.
DATA ?= uoft-cs/cifar100
# For `make train`: the checkpoint whose gates are trained anew; the bundle's backbone is what it was trained from.
INIT ?= $(BUNDLE)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.service-cpu ## serve the bundled model on http://127.0.0.1:$PORT (8000); installs no torch
	SKIPVIT_PORT=$(PORT) exec $(BIN)/python -m service

test: $(VENV)/.dev ## run the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy models export service tests
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.export ## time the sparse graph against the dense one, on real images
	$(BIN)/python -m export.benchmark --bundle $(BUNDLE)

export: $(VENV)/.export ## write the bundle's graphs, manifest and card anew from its weights, and prove parity
	$(BIN)/python -m export --checkpoint $(BUNDLE) --out $(BUNDLE)

train: $(VENV)/.train ## train the gates of INIT on DATA (the bundled model's recipe; about 30 minutes on 2 cores)
	$(BIN)/python -m models.train --stage gates --data $(DATA) --init $(INIT) --out runs/gates \
	  --max-images 20000 --epochs 2 --learning-rate 3e-3

evaluate: $(VENV)/.train ## print the bundled model's table on the test images of DATA (half an hour on 2 cores)
	$(BIN)/python -m models.evaluate --checkpoint $(BUNDLE) --data $(DATA)

clean: ## delete .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

# One stamp for each installed extra; a change of pyproject.toml installs anew. An extra that holds others stamps them too.
HOLDS_dev := service-cpu train export
HOLDS_export := service-cpu train
$(VENV)/.%: pyproject.toml
	@echo 'installing .[$*] into $(VENV): half a minute, or several where torch is needed'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $(addprefix $(VENV)/.,$* $(HOLDS_$*))
.PRECIOUS: $(VENV)/.%
