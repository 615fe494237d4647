"""The terms of the losses, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.losses import budget_loss, distillation_loss, gate_loss, group_of, task_loss


def kept(*shares: tuple[float, float]) -> Tensor:
    """(B, 2 gated layers, 4 patches): each image keeps the given share in its first and in its second layer."""
    rows = [[[1.0] * round(4 * share) + [0.0] * round(4 * (1 - share)) for share in pair] for pair in shares]
    return torch.tensor(rows)


def test_no_budget_is_owed_where_each_group_skips_its_threshold() -> None:
    decisions = kept((1.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.75, 0.25))
    assert budget_loss(decisions, torch.tensor([0.0, 0.0, 0.5, 0.5]), 2).item() == 0


def test_one_image_or_one_layer_may_skip_all_if_the_groups_mean_is_right() -> None:
    assert budget_loss(kept((0.0, 0.0), (1.0, 1.0)), torch.tensor([0.5, 0.5]), 1).item() == 0
    assert budget_loss(kept((0.0, 1.0), (0.0, 1.0)), torch.tensor([0.5, 0.5]), 1).item() == 0
    # but not one group for another
    assert budget_loss(kept((0.0, 0.0), (1.0, 1.0)), torch.tensor([0.5, 0.5]), 2).item() == pytest.approx(0.25)


def test_the_budget_is_the_mean_of_squared_distances() -> None:
    decisions = kept((1.0, 0.5), (0.5, 1.0), (0.0, 0.0), (0.25, 0.25))  # groups skip 0.25 and 0.875
    found = budget_loss(decisions, torch.tensor([0.5, 0.5, 0.75, 0.75]), 2).item()
    assert found == pytest.approx((0.25**2 + 0.125**2) / 2)


def test_groups_may_differ_by_an_image_and_weigh_the_same() -> None:
    assert group_of(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    decisions = kept((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.5, 0.5))  # groups of 3 and 2
    assert budget_loss(decisions, torch.tensor([0.2] * 3 + [0.5] * 2), 2).item() == pytest.approx(0.2**2 / 2)


def test_the_budgets_gradient_asks_to_keep_more_where_too_much_is_skipped() -> None:
    decisions = kept((0.0, 0.0), (1.0, 1.0)).requires_grad_()
    (gradient,) = torch.autograd.grad(budget_loss(decisions, torch.tensor([0.5, 0.5]), 2), decisions)
    assert (gradient[0] < 0).all()
    assert (gradient[1] > 0).all()


def test_the_tasks_targets_may_be_shares() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4, 1/4
    found = task_loss(logits, torch.tensor([[0.5, 0.5]])).item()
    assert found == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_a_student_that_answers_as_its_teacher_pays_the_teachers_entropy_and_no_less() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert distillation_loss(teacher, teacher).item() == pytest.approx(entropy)
    assert distillation_loss(teacher.flip(1), teacher).item() > entropy + 0.1


def test_gates_pay_for_each_wrong_label() -> None:
    logits = torch.tensor([0.0, math.log(3.0)])
    found = gate_loss(logits, torch.tensor([True, False])).item()
    assert found == pytest.approx((math.log(2) + math.log(4)) / 2)
