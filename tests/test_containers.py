"""What versions of PyAV call differently."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest

from videornn.data.containers import frame_rate, time_base


class Rational:
    """A rate as PyAV 19 has it: no Fraction, and 0/1 instead of None."""

    def __init__(self, numerator: int, denominator: int) -> None:
        self.numerator, self.denominator = numerator, denominator

    def __bool__(self) -> bool:
        return self.numerator != 0 and self.denominator != 0


@pytest.mark.parametrize("nothing", [None, Rational(0, 1), Rational(1, 0)])
@pytest.mark.parametrize("number", [Fraction, Rational])
def test_rates_are_exact_whatever_type_they_come_in(number: type, nothing: object) -> None:
    ntsc = number(30000, 1001)
    stream = SimpleNamespace(average_rate=nothing, guessed_rate=ntsc, time_base=number(1, 90000))
    assert type(frame_rate(stream)) is Fraction and frame_rate(stream) == Fraction(30000, 1001)
    assert type(time_base(stream)) is Fraction and time_base(stream) == Fraction(1, 90000)
    assert frame_rate(SimpleNamespace(average_rate=ntsc, guessed_rate=nothing)) == Fraction(30000, 1001)
    assert frame_rate(SimpleNamespace(average_rate=nothing, guessed_rate=nothing)) is None
