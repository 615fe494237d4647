"""What a reader should pick: by hand."""

from __future__ import annotations

from typing import Any

from models.frontier import best_within, frontier


def rows(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"macs_ratio": macs_ratio, "top1": top1} for macs_ratio, top1 in pairs]


def points(found: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(row["macs_ratio"], row["top1"]) for row in found]


def test_only_rows_more_accurate_than_every_cheaper_one_are_left_dearest_first() -> None:
    measured = rows((1.0, 0.90), (0.8, 0.91), (0.5, 0.85), (0.6, 0.85), (0.6, 0.80), (0.2, 0.30), (0.3, 0.20))
    assert points(frontier(measured)) == [(0.8, 0.91), (0.5, 0.85), (0.2, 0.30)]


def test_of_rows_that_cost_the_same_the_most_accurate_is_left() -> None:
    assert points(frontier(rows((0.5, 0.7), (0.5, 0.8), (0.5, 0.6)))) == [(0.5, 0.8)]
    assert frontier([]) == []


def test_the_best_within_a_budget_is_the_most_accurate_then_the_cheapest() -> None:
    measured = rows((1.0, 0.90), (0.6, 0.85), (0.5, 0.85), (0.3, 0.50))
    found = [best_within(measured, share) for share in (1.0, 0.99, 0.5, 0.4, 0.2)]
    assert [row and (row["macs_ratio"], row["top1"]) for row in found] == [
        (1.0, 0.90),
        (0.5, 0.85),
        (0.5, 0.85),
        (0.3, 0.50),
        None,
    ]
