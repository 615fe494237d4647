# Two commands for users: `make serve`, `make test`. Every target makes .venv and installs what it needs, and only that.

.DEFAULT_GOAL := help
.PHONY: help serve test screenshot lint format bench loadtest export train evaluate soak image image-test k8s-test clean
SHELL := /bin/bash

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
NAME ?= cifar100-vits14
BUNDLE := models/zoo/$(NAME)
# For `make train` and `make evaluate`: a folder of parquet files in the hub's schema, an image folder or a hub name.
DATA ?= uoft-cs/cifar100
# For `make train`: where its first stage starts from, a timm safetensors file or a checkpoint folder. This one is fetched
# from the hub: timm's own weights of BACKBONE. (The bundle's model started from others, see its card.)
INIT ?= runs/$(BACKBONE).safetensors
BACKBONE := vit_small_patch14_dinov2
# For `make train`: options of both trainings, and of both measurements. Every step on a folder of a few hundred images:
#   make train DATA=FEW TRAIN_OPTIONS="--max-images 16 --batch-size 8 --epochs 1" \
#     EVALUATE_OPTIONS="--max-images 12 --thresholds 0,0.3"
TRAIN_OPTIONS ?=
EVALUATE_OPTIONS ?=
# For `make train`: the input sizes to measure and to serve, px, the full one first; larger ones are for second looks.
SIZES ?= 112,126,98,84,70,56
# For `make test`: processes that run tests, each a file at a time; the longest files come first.
TEST_PROCESSES ?= 2
# For `make image`: its name, and what it is for: cpu, gpu or loadtest.
IMAGE ?= skipvit
TARGET ?= cpu
# For `make export`: what becomes the bundle; a new one (CHECKPOINT=runs/joint) needs ORIGIN="where its weights are from".
CHECKPOINT ?= $(BUNDLE)

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.service-cpu ## serve the bundled model on http://127.0.0.1:$PORT (8000); installs no torch
	SKIPVIT_PORT=$(PORT) exec $(BIN)/python -m service

test: $(VENV)/.dev ## run the whole test suite
	tests/tools.sh
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

screenshot: $(VENV)/.dev ## take the README's picture of the web page anew; needs Chromium
	tests/tools.sh
	$(BIN)/python -m tests.page.screenshot --out docs/page.png

lint: $(VENV)/.dev ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy models export service loadtest tests k8s
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## time ours beside every rival, on real images; some twenty minutes
	$(BIN)/python -m export.benchmark --bundle $(BUNDLE) --images loadtest/images

loadtest: $(VENV)/.service-cpu $(VENV)/.loadtest ## 3 minutes of load: accuracy and latency; starts a service if none is ready on $PORT
	$(BIN)/python -m loadtest.sweep --minutes 3 --port $(PORT) --thresholds 0,.3,.6 --presets economy --rates .4x,.8x,1.2x

export: $(VENV)/.export ## write the bundle's graphs, manifest and card anew from CHECKPOINT, and prove parity
	$(BIN)/python -m export --checkpoint $(CHECKPOINT) --out $(BUNDLE) --images $(BUNDLE)/samples \
	  $(if $(ORIGIN),--origin "$(ORIGIN)")

train: $(VENV)/.export $(INIT) ## train on DATA from timm's weights (or INIT) by the recipes, measure, export: runs/$(NAME) (a GPU: half an hour)
	$(BIN)/python -m models.train @models/recipes/teacher.args $(TRAIN_OPTIONS) --data $(DATA) --init $(INIT) \
	  --out runs/teacher
	$(BIN)/python -m models.train @models/recipes/joint.args $(TRAIN_OPTIONS) --data $(DATA) --init runs/teacher \
	  --teacher runs/teacher --out runs/joint
	$(BIN)/python -m models.evaluate --checkpoint runs/joint --data $(DATA) --sizes $(SIZES) $(EVALUATE_OPTIONS) \
	  --out runs/joint/evaluation.json
	$(BIN)/python -m models.evaluate --checkpoint runs/joint --data $(DATA) --sizes $(SIZES) $(EVALUATE_OPTIONS) \
	  --split heldout --out runs/joint/calibration.json
	$(BIN)/python -m export --checkpoint runs/joint --out runs/$(NAME) --images $(BUNDLE)/samples --calibrate $(DATA) \
	  --origin "$(or $(ORIGIN),Trained by make train from $(notdir $(INIT)).)"

runs/$(BACKBONE).safetensors: | $(VENV)/.export
	@mkdir -p $(@D)
	$(BIN)/python -c "import timm; from safetensors.torch import save_file; \
	  save_file(timm.create_model('$(BACKBONE)', pretrained=True).state_dict(), '$@')"

evaluate: $(VENV)/.export ## print the bundle's table, as it is served, on the test images of DATA (an hour on 2 cores)
	$(BIN)/python -m models.evaluate --bundle $(BUNDLE) --data $(DATA)

soak: $(VENV)/.dev ## serve mixed traffic for ten minutes; print drift of memory and p99, fail on any wrong answer
	$(BIN)/python -m tests.soak

image: ## build the container image $IMAGE (skipvit) for $TARGET: cpu, gpu or loadtest; with Docker or buildah
	$(PYTHON) k8s/build.py --target $(TARGET) --tag $(IMAGE)

image-test: $(VENV)/.dev ## build the images and run them as confined as the pods are; minutes, installs a builder (apt)
	k8s/tools.sh image
	TEST_REQUIRE_TOOLS=1 $(BIN)/python -m pytest -s tests/k8s/check_image.py

k8s-test: $(VENV)/.dev $(VENV)/checkov/bin/checkov ## roll pods over under load, ask a Prometheus, lint policies; minutes, installs what it needs (apt)
	k8s/tools.sh cluster
	TEST_REQUIRE_TOOLS=1 $(BIN)/python -m pytest tests/k8s
	TEST_REQUIRE_TOOLS=1 $(BIN)/python -m pytest -s tests/k8s/check_policy.py tests/k8s/check_rolling_restart.py

clean: ## delete .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

# One stamp for each installed extra; a change of pyproject.toml installs anew. An extra that holds others stamps them too.
HOLDS_dev := service-cpu train export loadtest
HOLDS_export := service-cpu train
HOLDS_bench := export service-cpu train
$(VENV)/.%: pyproject.toml
	@echo 'installing .[$*] into $(VENV): half a minute, or several where torch is needed'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $(addprefix $(VENV)/.,$* $(HOLDS_$*))
.PRECIOUS: $(VENV)/.%

# Beside the rest: it pins the versions of hundreds of packages.
$(VENV)/checkov/bin/checkov:
	$(PYTHON) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/python -m pip install --quiet --disable-pip-version-check 'checkov>=3.2'
