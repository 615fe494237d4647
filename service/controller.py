"""Load-adaptive compute: how far to lower the spending of new requests, from how long they would have to wait. Pure.

A proportional-integral controller on queue delay, clocked from outside. The queue integrates the difference between
offered and finished work, so the loop is of second order, with damping `_GAIN / 2 * sqrt(g / (_INTEGRAL * target_s))`,
where g, the work that a whole level saves each second, is about the offered load in engines. It settles without an
oscillation of its own, which the simulations in its tests show. The delay is smoothed, because work leaves the queue in
batches; the level moves in steps, because requests of one level share an input size, and so a batch. Between half the
target and the target nothing changes (hysteresis). The level is 0 (spend what was asked) to 1 (spend the operator's
minimum); the quality guard may lower the highest level.

Overload control by delay follows CoDel (Nichols and Jacobson, 2012); spending less before refusing is known as brownout
(Klein et al., ICSE 2014).
"""

from __future__ import annotations

import math

_SMOOTHING_S = 0.5  # time constant of the moving average of the delay
_STEPS = 4  # from level 0 to 1
_STEP_HYSTERESIS = 0.75  # of a step, that must be wished for before one is taken
_GAIN = 0.25  # level for each target's length of delay above the target
_INTEGRAL = 0.05  # level a second for each target's length
_RELEASE = 0.25  # level a second while the delay is below half the target
_MAX_ERROR = 4.0  # targets; a longer delay drives no harder
_MAX_STEP_S = 0.25  # a pause between observations counts as no more than this while the delay is high
_TIGHTEN, _LOOSEN = 0.2, 0.05  # of the highest level, with each verdict of the quality guard
_LEAST_CEILING = 0.1  # at 0 nothing would be lowered, so nothing judged, and so it would stay for ever


class Controller:
    """Holds the level; told delays, asked for spending."""

    def __init__(self, *, target_s: float, enabled: bool = True) -> None:
        """`target_s`: queue delay that is fine. `enabled`: the operator's off switch; False keeps the level at 0."""
        self._target_s = target_s
        self._enabled = enabled
        self._delay_s = 0.0
        self._integral = 0.0
        self._level = 0.0
        self._ceiling = 1.0
        self._observed_s: float | None = None

    @property
    def level(self) -> float:
        """How far spending is lowered: 0 not at all, 1 to the minimum."""
        return min(self._ceiling, self._level)

    @property
    def ceiling(self) -> float:
        """The highest level that the quality guard allows."""
        return self._ceiling

    def observe(self, now_s: float, delay_s: float, least_target_s: float = 0.0) -> None:
        """Take in the delay that a request admitted at `now_s` would see.

        `least_target_s`: what counts as no queue; a shorter target would be missed for ever (as CoDel's must not be
        shorter than a packet takes).
        """
        elapsed_s = 0.0 if self._observed_s is None else max(0.0, now_s - self._observed_s)
        self._observed_s = now_s
        if not self._enabled:
            return
        self._delay_s += (1.0 - math.exp(-elapsed_s / _SMOOTHING_S)) * (delay_s - self._delay_s)
        target_s = max(self._target_s, least_target_s)
        error = min(self._delay_s / target_s - 1.0, _MAX_ERROR)
        if error > 0:
            self._integral += _INTEGRAL * error * min(elapsed_s, _MAX_STEP_S)
        elif self._delay_s < target_s / 2:
            self._integral -= _RELEASE * elapsed_s
        self._integral = min(max(self._integral, 0.0), self._ceiling)
        wish = min(self._ceiling, self._integral + _GAIN * max(0.0, error))
        if abs(wish - self._level) > _STEP_HYSTERESIS / _STEPS:
            self._level = round(wish * _STEPS) / _STEPS

    def judge(self, agreement_is_fine: bool) -> None:
        """The quality guard's verdict: tighten the highest level, or loosen it again slowly."""
        change = _LOOSEN if agreement_is_fine else -_TIGHTEN
        self._ceiling = min(max(self._ceiling + change, _LEAST_CEILING), 1.0)

    def share(self, wanted: float, minimum: float) -> float:
        """The share of the dense time to spend on a request that wants `wanted` and may be lowered to `minimum`."""
        return wanted - self.level * max(0.0, wanted - minimum)
