"""Training learns, resumes where it stopped, and says in one line what is wrong with its input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models import checkpoint, run, stages, train
from models.config import IMAGENET_MEAN, IMAGENET_STD, PrunedViTConfig, TrainConfig
from models.pruned_vit import build
from models.teacher import Teacher
from tests.conftest import CLASSES, GATED, MODEL, SIZE_PX, SMALL_PX

Capture = pytest.CaptureFixture[str]


def options(data: Path, out: Path, *more: str) -> list[str]:
    shared = ["--data", str(data), "--out", str(out), "--image-size", str(SIZE_PX), "--batch-size", "16"]
    return ["--stage", "dense", *shared, "--model", MODEL, "--holdout-ratio", "0.17", "--precision", "fp32", *more]


def last_entry(run: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((run / "train.json").read_text())["history"][-1]
    return entry


def test_dense_training_learns_the_toy_classes_at_every_size(toy_checkpoint: Path) -> None:
    points = last_entry(toy_checkpoint.parent / "dense")["points"]
    assert [(point["size_px"], point["threshold"]) for point in points] == [(SIZE_PX, 0.0), (SMALL_PX, 0.0)]
    assert all(point["top1"] >= 0.9 for point in points)


def test_gates_follow_the_labels(toy_checkpoint: Path) -> None:
    gates = last_entry(toy_checkpoint.parent / "gates")
    constant = sum(max(keep, 1 - keep) for keep in gates["label_keep"]) / len(gates["label_keep"])
    assert gates["accuracy"] > constant + 0.05  # better than always giving the more frequent answer


def test_a_joint_run_skips_about_what_the_threshold_says_and_stays_right(toy_checkpoint: Path) -> None:
    rows = json.loads((toy_checkpoint / "evaluation.json").read_text())["rows"]
    for size_px, patches in ((SIZE_PX, 16), (SMALL_PX, 4)):
        measured = [row for row in rows if row["size_px"] == size_px]
        thresholds = [row["threshold"] for row in measured]
        skipped = [row["skipped_patches"] / patches for row in measured]
        assert skipped == sorted(skipped)
        assert (skipped[0], skipped[-1]) == (0, 1)
        inner = list(zip(thresholds, skipped, strict=True))[1:-1]
        assert all(abs(share - threshold) < 0.17 for threshold, share in inner), inner
    assert all(row["top1"] >= 0.9 for row in rows if row["threshold"] < 0.5)


def test_gates_training_leaves_the_backbone_as_it_was_and_joint_training_does_not(toy_checkpoint: Path) -> None:
    dense, gates, joint = (
        checkpoint.load(toy_checkpoint.parent / name).state_dict() for name in ("dense", "gates", "joint")
    )
    backbone = [name for name in dense if name.startswith("vit.")]
    assert all(torch.equal(dense[name], gates[name]) for name in backbone)
    assert not any(torch.equal(gates[name], joint[name]) for name in backbone if name.endswith("mlp.fc1.weight"))
    assert not any(torch.equal(gates[name], joint[name]) for name in gates if name.startswith("gates."))


def test_gates_go_into_every_layer_but_a_last_one_whose_patches_nobody_reads(tmp_path: Path) -> None:
    for model, gated in (("test_vit", range(5)), ("test_vit2", range(8)), ("test_vit --gated-layers 5,1", (5, 1))):
        arguments = ["--stage", "joint", "--data", "x", "--out", str(tmp_path), "--image-size", "64", "--model"]
        built = train.model_for(train.parse([*arguments, *model.split()]), ("a", "b"))
        assert built.config.gated_layers == tuple(gated)


@pytest.mark.parametrize("stage", ["dense", "joint"])
def test_a_stopped_run_goes_on_and_ends_where_an_unbroken_one_does(
    stage: str,
    toy_checkpoint: Path,
    toy_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    more = ["--epochs", "2", "--sizes-px", f"{SIZE_PX},{SMALL_PX}", "--mixup", "0.4", "--cutmix", "1"]
    if stage == "joint":
        runs = toy_checkpoint.parent
        more += ["--stage", "joint", "--init", str(runs / "gates"), "--teacher", str(runs / "dense")]
        more += ["--gated-layers", ",".join(map(str, GATED))]
    whole = options(toy_images, tmp_path / "whole", *more)
    assert train.main(whole) == 0

    class Stopped(Exception):
        pass

    step = run.Run._step
    steps: list[int] = []

    def stop_in_the_second_epoch(stopped: run.Run, *arguments: Any) -> torch.Tensor:
        if len(steps) == 6:
            stopped.save()
            raise Stopped
        steps.append(0)
        return step(stopped, *arguments)

    broken = options(toy_images, tmp_path / "broken", *more)
    monkeypatch.setattr(run.Run, "_step", stop_in_the_second_epoch)
    with pytest.raises(Stopped):
        train.main(broken)
    monkeypatch.undo()
    capsys.readouterr()
    assert train.main(broken) == 0
    assert "resumed at epoch 2, 32 images in" in capsys.readouterr().err
    one, other = (torch.load(tmp_path / name / run.STATE, weights_only=True)["model"] for name in ("whole", "broken"))
    # Far below what one lost or repeated step would change: a step moves a weight by up to the learning rate, 5e-4.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


@pytest.mark.parametrize("rival", ["merged", "repeated"])
def test_a_rival_without_gates_learns_its_whole_range_and_is_judged_at_all_of_it(
    rival: str, toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    start = ["--init", str(toy_checkpoint.parent / "dense"), f"--{rival}", "3"]
    assert train.main(options(toy_images, tmp_path, *start)) == 0
    points = last_entry(tmp_path)["points"]
    assert [point.get(rival, 0) for point in points] == [0, 1, 2, 3]
    costs = [point["macs_ratio"] for point in points]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(1)
    drawn = [stages.Step(TrainConfig("dense"), run.step_rng(TrainConfig("dense"), step)).draw(3) for step in range(40)]
    assert set(drawn) == {0, 1, 2, 3}


def test_a_run_may_be_judged_at_a_size_that_it_never_trains_at(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    start = toy_checkpoint.parent / "dense"
    assert train.main(options(toy_images, tmp_path, "--init", str(start), "--judged-px", str(SMALL_PX))) == 0
    points = last_entry(tmp_path)["points"]
    assert [point["size_px"] for point in points] == [SIZE_PX, SMALL_PX]
    assert points[1]["macs_ratio"] < points[0]["macs_ratio"] == 1
    config, model = TrainConfig("dense", judged_px=(SMALL_PX,)), checkpoint.load(start)
    drawn = {stages.Step(config, run.step_rng(config, step)).size_px(model) for step in range(20)}
    assert drawn == {SIZE_PX}


def test_gates_learn_what_matters_to_the_head_where_labels_are_of_impact(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    start = ["--stage", "gates", "--init", str(toy_checkpoint.parent / "dense"), "--impact-skip", "0.4"]
    more = ["--gated-layers", ",".join(map(str, GATED)), "--epochs", "6", "--learning-rate", "1e-2"]
    assert train.main(options(toy_images, tmp_path, *start, *more)) == 0
    found = last_entry(tmp_path)
    keep = found["label_keep"]
    assert sum(keep) / len(keep) == pytest.approx(0.6, abs=0.01)
    assert found["accuracy"] > sum(max(share, 1 - share) for share in keep) / len(keep) + 0.02


def test_a_bypass_learns_with_the_gates_and_comes_back_from_its_checkpoint(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    assert train.main(options(toy_images, tmp_path, *joint(toy_checkpoint, "--bypass-rank", "2"))) == 0
    found = checkpoint.load(tmp_path)
    assert found.config.bypass_rank == 2
    assert sorted(found.bypasses) == [str(layer) for layer in GATED]
    own = {name: tensor for name, tensor in found.state_dict().items() if name.startswith("bypasses.")}
    assert all(tensor.abs().sum() > 0 for tensor in own.values())
    again = train.model_for(
        train.parse(options(toy_images, tmp_path, "--stage", "joint", "--init", str(tmp_path))), tuple(CLASSES)
    ).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in own.items())


def test_a_last_batch_smaller_than_a_joint_steps_groups_is_learned_from_too(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    more = ["--stage", "joint", "--init", str(toy_checkpoint.parent / "gates"), "--max-images", "19"]
    assert train.main(options(toy_images, tmp_path / "out", *more)) == 0
    assert json.loads((tmp_path / "out" / "train.json").read_text())["training_images"] == 19


def joint(toy_checkpoint: Path, *more: str) -> list[str]:
    """Options of a short joint run from the toy gates, taught by the toy model."""
    runs = toy_checkpoint.parent
    start = ["--stage", "joint", "--init", str(runs / "gates"), "--teacher", str(runs / "dense"), "--epochs", "2"]
    return [*start, "--sizes-px", f"{SIZE_PX},{SMALL_PX}", "--mixup", "0.4", "--cutmix", "1", *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """What a run ended with, by name."""
    return checkpoint.read_weights(run / checkpoint.WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_kept_answers_teach_as_the_teacher_does_who_is_not_asked_again(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, file = joint(toy_checkpoint, "--full-share", "0.5"), ["--answers", str(tmp_path / "answers.pt")]
    assert train.main(options(toy_images, tmp_path / "asking", *more)) == 0
    assert train.main(options(toy_images, tmp_path / "none", *more, *file, "--answers-only")) == 0
    assert not (tmp_path / "none").exists()

    load = Teacher.load

    def load_and_fall_silent(teacher: Teacher, answers: Path) -> None:
        load(teacher, answers)
        monkeypatch.setattr(teacher, "model", None)

    monkeypatch.setattr(Teacher, "load", load_and_fall_silent)
    assert train.main(options(toy_images, tmp_path / "kept", *more, *file)) == 0
    assert same(weights(tmp_path / "asking"), weights(tmp_path / "kept"))


def test_answers_to_other_views_are_refused(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    more = joint(toy_checkpoint, "--answers", str(tmp_path / "answers.pt"))
    assert train.main(options(toy_images, tmp_path / "out", *more)) == 2
    assert "answers.pt is missing: write it with the same options and --answers-only" in capsys.readouterr().err
    assert train.main(options(toy_images, tmp_path / "out", *more, "--answers-only")) == 0
    assert train.main(options(toy_images, tmp_path / "out", *more, "--seed", "1")) == 2
    assert "answers.pt holds answers to other views" in capsys.readouterr().err


def test_a_step_shown_in_full_as_well_learns_what_the_dense_model_learns(toy_checkpoint: Path) -> None:
    model = build(checkpoint.read_config(toy_checkpoint), any_size=True).eval()
    checkpoint.initialise(model, toy_checkpoint)
    pixels = torch.randint(256, (11, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(11) % 3

    def loss(stage: str, **settings: float) -> float:
        sizes_px = (SMALL_PX,) if stage == "joint" else ()
        config = TrainConfig(stage=stage, sizes_px=sizes_px, **settings)  # type: ignore[arg-type]
        context = stages.Step(config, run.step_rng(config, 0))
        return stages.STAGES[stage].loss(model, pixels, labels, context).item()

    assert loss("joint", full_share=1.0, budget_weight=0.0) == pytest.approx(loss("dense"), abs=1e-6)
    parts = [loss("joint", full_share=share, budget_weight=0.0, gate_noise=0.0) for share in (0.0, 0.25, 1.0)]
    assert parts[1] == pytest.approx(0.75 * parts[0] + 0.25 * parts[2], abs=1e-5)
    assert abs(parts[0] - parts[2]) > 1e-3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch's own tracing
def test_compiled_layers_learn_as_others_do(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def fast(function: object, **settings: object) -> object:  # traced, but not turned into C++, which takes a minute
        compiled.append(function)
        return compile_(function, backend="eager", **settings)  # type: ignore[call-overload]

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", fast)
    more = joint(toy_checkpoint, "--full-share", "0.5", "--max-images", "16", "--drop-path", "0", "--epochs", "1")
    assert train.main(options(toy_images, tmp_path / "plain", *more)) == 0
    assert not compiled
    assert train.main(options(toy_images, tmp_path / "compiled", *more, "--compile")) == 0
    assert len(compiled) >= 6
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3


def test_float32_gradients_are_those_of_the_parameters_that_compute(toy_checkpoint: Path, tmp_path: Path) -> None:
    machine = run.Machine("cpu", torch.bfloat16)
    training = run.Run(checkpoint.load(toy_checkpoint), TrainConfig(stage="joint"), machine, tmp_path)
    own, computing = (list(model.parameters()) for model in (training.model, training.working))
    for step in (1.0, 2.0):  # the second time into the same memory, and without one of them
        for index, parameter in enumerate(computing):
            parameter.grad = torch.full_like(parameter, step + index)
        computing[3].grad = None if step == 2.0 else computing[3].grad
        training._take_gradients()
        found = [None if parameter.grad is None else parameter.grad.flatten()[0].item() for parameter in own]
        wanted = [float(torch.tensor(step + index).bfloat16()) for index in range(len(own))]
        assert found == [None if (step, index) == (2.0, 3) else value for index, value in enumerate(wanted)]
        assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in own)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--epochs", "9"], "epochs"),
        (["--precision", "bf16"], "precision"),
        (["--model", "test_vit2"], "model"),
        (["--init", "{dense}"], "init, init_digest, model"),  # it brings how pixels are normalised
        (["--teacher", "{dense}"], "teacher, teacher_digest"),
    ],
)
def test_a_folder_with_another_run_is_not_overwritten(
    more: list[str], named: str, toy_images: Path, toy_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert train.main(options(toy_images, tmp_path, "--epochs", "1")) == 0
    given = [value.format(dense=toy_checkpoint.parent / "dense") for value in more]
    assert train.main(options(toy_images, tmp_path, "--epochs", "1", *given)) == 2
    said = f"holds a run with other settings ({named}): give another --out or delete it"
    assert said in capsys.readouterr().err


def test_a_damaged_state_is_named(toy_images: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train.main(options(toy_images, tmp_path, "--epochs", "1")) == 0
    state = (tmp_path / "state.pt").read_bytes()
    for damaged in (state[: len(state) // 2], b"", b"no state"):
        (tmp_path / "state.pt").write_bytes(damaged)
        assert train.main(options(toy_images, tmp_path, "--epochs", "1")) == 2
        assert "state.pt is damaged" in capsys.readouterr().err.splitlines()[-1]


def test_classes_without_training_images_are_told(toy_images: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train.main(options(toy_images, tmp_path, "--epochs", "1", "--max-images", "1")) == 0
    assert "2 of 3 classes have no training image: " in capsys.readouterr().err


def test_a_start_a_teacher_or_images_of_the_same_names_but_other_content_are_another_run(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    start, data = tmp_path / "dense", tmp_path / "data" / "toy"
    shutil.copytree(toy_checkpoint.parent / "dense", start)
    shutil.copytree(toy_images, data)
    command = options(data, tmp_path / "out", "--epochs", "1", "--init", str(start), "--teacher", str(start))
    assert train.main(command) == 0
    assert train.main(command) == 0
    tensors = load_file(start / checkpoint.WEIGHTS)
    save_file(tensors | {"norm.bias": tensors["norm.bias"] + 1}, start / checkpoint.WEIGHTS)
    assert train.main(command) == 2
    assert "other settings (init_digest, teacher_digest)" in capsys.readouterr().err
    shutil.copy(toy_checkpoint.parent / "dense" / checkpoint.WEIGHTS, start)
    for file in (data / "train").glob("*/*.png"):
        Image.new("RGB", (32, 32)).save(file)
    assert train.main(command) == 2
    assert "other settings (training_digest)" in capsys.readouterr().err


def test_a_run_stopped_behind_an_epochs_last_step_goes_on_and_its_loss_and_time_are_of_all_calls(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = options(toy_images, tmp_path / "out", "--epochs", "2")
    assert train.main(options(toy_images, tmp_path / "whole", "--epochs", "2")) == 0

    class Stopped(Exception):
        pass

    save = run.Run.save

    def stop_when_the_first_epoch_is_through(stopped: run.Run) -> None:
        save(stopped)
        if stopped.progress.images == 60:
            raise Stopped

    monkeypatch.setattr(run, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(run.Run, "save", stop_when_the_first_epoch_is_through)
    with pytest.raises(Stopped):
        train.main(command)
    monkeypatch.undo()
    trained_s = torch.load(tmp_path / "out" / run.STATE, weights_only=True)["progress"]["wall_s"]
    assert trained_s > 0
    assert train.main(command) == 0
    summaries = [json.loads((tmp_path / name / "train.json").read_text()) for name in ("whole", "out")]
    one, other = ([entry["loss"] for entry in summary["history"]] for summary in summaries)
    assert one == pytest.approx(other)
    assert summaries[1]["wall_s"] >= round(trained_s, 1)
    assert train.main(command) == 0
    assert json.loads((tmp_path / "out" / "train.json").read_text())["wall_s"] == summaries[1]["wall_s"]


def test_who_knows_other_classes_teaches_nobody_and_starts_none_with_its_head(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    data, dense = tmp_path / "renamed", str(toy_checkpoint.parent / "dense")
    shutil.copytree(toy_images, data)
    for split in ("train", "test"):
        first = sorted((data / split).iterdir())[0]
        first.rename(first.with_name("zebra"))
    assert train.main(options(data, tmp_path / "taught", "--epochs", "1", "--teacher", dense)) == 2
    assert "other classes than --teacher" in capsys.readouterr().err
    assert train.main(options(data, tmp_path / "started", "--epochs", "1", "--init", dense)) == 0
    assert "2 tensors new: vit.head.bias, vit.head.weight" in capsys.readouterr().err


def test_pixels_are_normalised_as_timms_weights_want_them_unless_told(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    def config(name: str, *more: str) -> PrunedViTConfig:
        assert train.main(options(toy_images, tmp_path / name, "--epochs", "1", "--max-images", "16", *more)) == 0
        return checkpoint.read_config(tmp_path / name)

    assert config("timms").mean == (0.5, 0.5, 0.5)  # of `test_vit`
    assert checkpoint.read_config(toy_checkpoint).mean == IMAGENET_MEAN  # as told, handed on by each stage
    own = config("own", "--mean", "0.4", "0.5", "0.6", "--std", "0.1", "0.2", "0.3")
    assert (own.mean, own.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert config("next", "--init", str(tmp_path / "own")).mean == own.mean
    assert train._normalisation("vit_small_patch14_dinov2") == (IMAGENET_MEAN, IMAGENET_STD)
    assert train._normalisation("nobody's") == (IMAGENET_MEAN, IMAGENET_STD)


def test_what_is_said_of_a_start_changes_it_also_where_it_says_nothing(toy_checkpoint: Path, tmp_path: Path) -> None:
    def made(start: Path, *more: str) -> PrunedViTConfig:
        given = train.parse([*options(tmp_path, tmp_path, "--init", str(start)), *more])
        return train.model_for(given, tuple(CLASSES)).config

    given = ["--stage", "joint", "--bypass-rank", "4", "--full-layers", "2"]
    rich = train.model_for(
        train.parse([*options(tmp_path, tmp_path, "--init", str(toy_checkpoint)), *given]), tuple(CLASSES)
    )
    checkpoint.save(rich, tmp_path / "rich")
    assert (rich.config.bypass_rank, rich.config.full_layers) == (4, 2)
    kept = made(tmp_path / "rich", "--stage", "joint")
    assert (kept.bypass_rank, kept.full_layers) == (4, 2)
    without = made(tmp_path / "rich", "--stage", "joint", "--bypass-rank", "0", "--full-layers", "0")
    assert (without.bypass_rank, without.full_layers) == (0, 0)
    with pytest.raises(ValueError, match="leave out --model"):
        made(toy_checkpoint, "--model", "vit_small_patch16_224")


def test_what_a_stage_freezes_has_no_gradient_where_it_computes_in_half_precision(
    toy_checkpoint: Path, tmp_path: Path
) -> None:
    model, machine = checkpoint.load(toy_checkpoint), run.Machine("cpu", torch.bfloat16)
    training = run.Run(model, TrainConfig(stage="gates"), machine, tmp_path)
    learns = {name for name, parameter in training.working.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns
    assert all(name.startswith("gates.") for name in learns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "./nowhere"}, "./nowhere is no folder"),
        ({"--model": "resnet18"}, "can't build 'resnet18'|resnet18 is a ResNet"),
        ({"--init": "nowhere.safetensors"}, "nowhere.safetensors is missing"),
        ({"--holdout-ratio": "1"}, "can't hold out the share 1.0 of 72"),
        ({"--teacher": "./nowhere"}, "nowhere/config.json is missing"),
        ({"--epochs": "0"}, "epochs 0: has to be 1 or more"),
        ({"--image-size": "33"}, "an input of 33 px isn't a whole number of 16-px patches"),
        ({"--exits": "99"}, r"exits \(99,\): the model has layers 0 to 5"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_2(
    change: dict[str, str], message: str, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    import re

    arguments = options(toy_images, tmp_path / "out")
    for name, value in change.items():
        arguments += [name, value]
    assert train.main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("models.train: ")
    assert re.search(message, last)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    config = TrainConfig(stage="dense", learning_rate=1.0, warmup_ratio=0.1)
    rates = [run.learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
