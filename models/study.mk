# Everything that `models.results` compares, trained and measured anew, in one folder: this model, its rivals (each
# trained alike) and the short runs behind its choices. Runs go side by side and share their teacher's answers; one that
# is done is not done again, one that was stopped goes on.
#
#   make -f models/study.mk -j 5 DATA=DATA INIT=BACKBONE.safetensors
#   make -f models/study.mk -j 5 DATA=DATA INIT=models/zoo/NAME START=models/zoo/NAME JOINT=models/recipes/sandwich.args
#
# The short runs alone, from a dense model of one's own and without a teacher; their rows are then added to a checkpoint's:
#
#   make -f models/study.mk short DATA=DATA RUNS=runs/few SHORT_START=BACKBONE.safetensors TAUGHT= SHORT_EPOCHS=1 \
#     SHORT_PX=70 SHORT_SMALLER_PX=56 \
#     TRAIN_OPTIONS="--image-size 70 --max-images 9500 --batch-size 64 --learning-rate 1e-4 --gate-learning-rate 3e-3 \
#     --drop-path 0 --gate-noise 0.3"
#   python -m models.results --short-runs runs/few/short --out models/zoo/NAME
#
# They take two to six minutes each on two cores; SHORT="context dense" makes those alone. The model card has some of them
# with SHORT_EPOCHS=3, too, and some, those that came last, with fewer images: --max-images 2400 --batch-size 16 --seed 1
# --holdout-ratio 0.02.
#
# The published method on one backbone, at two cosine thresholds, in both attention modes; for a checkpoint's results:
#
#   make -f models/study.mk published DATA=DATA RUNS=runs/few PUBLISHED_START=models/zoo/NAME \
#     PUBLISHED_OPTIONS="--epochs 1 --batch-size 16 --max-images 3000 --holdout-ratio 0.01"
#   python -m models.published --runs runs/few/published --data DATA --max-images 1000 --out models/zoo/NAME
#
# A run's log is RUNS/NAME/log.txt. Not run in full: estimated at half an hour on an H100 with -j 5, at weeks on a CPU.
# A dry run, every step on a folder of a few hundred images, takes a quarter of an hour on two cores:
#
#   make -f models/study.mk -j 2 DATA=FEW RUNS=runs/dry EPOCHS=1 SHORT_EPOCHS=1 TEACHER_OPTIONS="--epochs 1" \
#     TRAIN_OPTIONS="--max-images 48 --batch-size 24" EVALUATE_OPTIONS="--batch-size 50 --max-images 30"

PYTHON ?= .venv/bin/python
DATA ?= uoft-cs/cifar100
# Where the teacher starts: a checkpoint folder or a timm safetensors file.
INIT ?= models/zoo/cifar100-vits14
RUNS ?= runs/study
# Where this model and its rivals start.
START ?= $(RUNS)/teacher
JOINT ?= models/recipes/joint.args
DENSE := models/recipes/dense.args
SIZES ?= 126,112,98,84,70,56
EPOCHS ?= 28
SHORT_EPOCHS ?= 4
# Their input size, and the smaller one that some are trained or run at, too.
SHORT_PX ?= 112
SHORT_SMALLER_PX ?= 84
# Where the short runs start, without gates; and who teaches all runs but the first.
SHORT_START ?= $(RUNS)/d112
TAUGHT ?= --teacher $(RUNS)/teacher --answers $(RUNS)/answers.pt
# Options of every training, of the teacher's alone, and of every evaluation.
TRAIN_OPTIONS ?=
TEACHER_OPTIONS ?=
EVALUATE_OPTIONS ?= --batch-size 500

RIVALS := d112 d84 d70 d56
WITHOUT_GATES := dense merged repeated many_sizes
SHORT := $(WITHOUT_GATES) context full cls context_mean normed mlp kept_only kept_late skip_mlp mlp_early every_second \
  bypass warm slimming diversity attention_scale feature_scale exits cls_attention random

# How a short run differs from `dense`, the plain model, if it is one of WITHOUT_GATES, or else from `context`: gates that
# see the patch, CLS and the mean patch, at the full size alone.
options_merged := --merged 5
options_repeated := --repeated 6
options_many_sizes := --sizes-px $(SHORT_PX),$(SHORT_PX),$(SHORT_SMALLER_PX)
options_dense := --judged-px $(SHORT_SMALLER_PX)
options_full := --full-share 0.5
options_cls := --gate context_cls
options_context_mean := --gate context_mean
options_normed := --gate normed
options_mlp := --gate mlp
options_kept_only := --attention kept_only
options_kept_late := --attention kept_only --full-layers 6
options_mlp_early := --mlp-layers 6
options_exits := --stage exits --exits 5,7,9 --learning-rate 3e-3 --mixup 0 --cutmix 0
options_skip_mlp := --skips mlp
options_every_second := --gated-layers 0,2,4,6,8,10
options_bypass := --bypass-rank 8
options_warm := --init $(RUNS)/short/labels
options_slimming := --init $(RUNS)/short/impact
options_diversity := --diversity 0.1
options_attention_scale := --scaled attention
options_feature_scale := --scaled features
options_cls_attention := --gate cls_attention
options_random := --gate random

# The published method's backbone, its cosine thresholds (a skip label for a fifth and for a third of the patches of the
# bundled model, chosen on held-out images) and options of its trainings.
PUBLISHED_START ?= models/zoo/cifar100-vits14
PUBLISHED_MODEL ?= vit_small_patch14_dinov2
PUBLISHED := 0.81 0.797
PUBLISHED_OPTIONS ?=
gates_below_last := --gated-layers 0,1,2,3,4,5,6,7,8,9,10

# A recipe, and what differs from it in a run.
train = @mkdir -p $(@D); echo "training $(@D)"; $(PYTHON) -m models.train @$(1) $(TRAIN_OPTIONS) $(2) --data $(DATA) \
  --out $(@D) > $(@D)/log.txt 2>&1
evaluate = @echo "measuring $(@D)"; $(PYTHON) -m models.evaluate --checkpoint $(@D) --data $(DATA) --out $@ \
  --predictions $(@:.json=.npz) $(EVALUATE_OPTIONS) $(1) > $(@:.json=.txt) 2>&1

.PHONY: results train short published
.DELETE_ON_ERROR:
.SECONDARY:

results: train
	$(PYTHON) -m models.results --runs $(RUNS) --out $(RUNS)

train: short $(foreach name,joint teacher gates $(RIVALS),$(RUNS)/$(name)/test.json) $(RUNS)/joint/heldout.json

short: $(SHORT:%=$(RUNS)/short/%/train.json)

$(RUNS)/teacher/train.json:
	$(call train,models/recipes/teacher.args,--init $(INIT) $(TEACHER_OPTIONS))

$(RUNS)/answers.pt: $(RUNS)/teacher/train.json
	@echo "asking $(RUNS)/teacher"; $(PYTHON) -m models.train @$(DENSE) $(TRAIN_OPTIONS) --epochs $(EPOCHS) --data $(DATA) \
	  --image-size 112 --teacher $(RUNS)/teacher --out $(RUNS) --answers $@ --answers-only > $(RUNS)/answers.txt 2>&1

$(RUNS)/joint/train.json: $(RUNS)/answers.pt
	$(call train,$(JOINT),--init $(START) $(TAUGHT) --epochs $(EPOCHS))

$(RIVALS:%=$(RUNS)/%/train.json): $(RUNS)/d%/train.json: $(RUNS)/answers.pt
	$(call train,$(DENSE),--init $(START) $(TAUGHT) --epochs $(EPOCHS) --image-size $*)

# The published method on the dense rival: its backbone rests, gates learn cosine labels.
$(RUNS)/gates/train.json: $(RUNS)/d112/train.json
	$(call train,$(JOINT),$(labels) --init $(RUNS)/d112 --gate mlp --cosine-threshold 0.9)

published: $(PUBLISHED:%=$(RUNS)/published/%/train.json)

# In either attention mode: gates learn from the dense forward, which both have.
$(PUBLISHED:%=$(RUNS)/published/%/train.json): $(RUNS)/published/%/train.json:
	$(call train,models/recipes/write-up.args,--model $(PUBLISHED_MODEL) --init $(PUBLISHED_START) --image-size 112 \
	  $(gates_below_last) --cosine-threshold $* $(PUBLISHED_OPTIONS))

# What is at its place before all runs begin isn't made here.
short_start := $(if $(filter $(RUNS)/%,$(SHORT_START)),$(SHORT_START)/train.json)

$(RUNS)/short/labels/train.json: $(short_start)
	$(call train,$(JOINT),$(short_labels))

$(RUNS)/short/impact/train.json: $(short_start)
	$(call train,$(JOINT),$(short_labels) --impact-skip 0.3)

labels := --stage gates --sizes-px= --epochs $(SHORT_EPOCHS) --learning-rate 1e-3
short_labels := $(labels) --init $(SHORT_START)

$(WITHOUT_GATES:%=$(RUNS)/short/%/train.json): $(RUNS)/short/%/train.json: $(short_start)
	$(call train,$(DENSE),--init $(SHORT_START) $(TAUGHT) --epochs $(SHORT_EPOCHS) $(options_$*))

# Heads on the dense run, which rests: an epoch more than the others, of heads alone.
$(RUNS)/short/exits/train.json: $(RUNS)/short/dense/train.json
	$(call train,$(DENSE),$(options_exits) --init $(RUNS)/short/dense $(TAUGHT) --epochs $(SHORT_EPOCHS))

$(RUNS)/short/%/train.json: $(short_start)
	$(call train,$(JOINT),--init $(SHORT_START) $(TAUGHT) --sizes-px= --full-share 0 --epochs $(SHORT_EPOCHS) $(options_$*))

$(RUNS)/short/warm/train.json: $(RUNS)/short/labels/train.json

$(RUNS)/short/slimming/train.json: $(RUNS)/short/impact/train.json

$(RUNS)/joint/test.json: $(RUNS)/joint/train.json
	$(call evaluate,--sizes $(SIZES))

$(RUNS)/joint/heldout.json: $(RUNS)/joint/train.json
	$(call evaluate,--sizes $(SIZES) --split heldout)

$(RUNS)/d112/test.json: $(RUNS)/d112/train.json
	$(call evaluate,--sizes $(SIZES) --thresholds 0)

$(RUNS)/gates/test.json: $(RUNS)/gates/train.json
	$(call evaluate)

$(RUNS)/%/test.json: $(RUNS)/%/train.json
	$(call evaluate,--thresholds 0)
