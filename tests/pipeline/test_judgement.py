import pytest

from pipeline.judgement import Rule, passes
from pipeline.record import Interval

ABOVE, ACROSS = Interval(estimate=0.2, low=0.1, high=0.3, n=9), Interval(estimate=0.2, low=-0.1, high=0.5, n=9)


@pytest.mark.parametrize(
    ("rule", "value", "interval", "p_value", "passed"),
    [
        ("at least", 0.0, None, None, True),
        ("at least", -0.1, None, None, False),
        ("at most", 0.0, None, None, True),
        ("at most", 0.1, None, None, False),
        ("wholly above", 0.2, ABOVE, None, True),
        ("wholly above", 0.2, ACROSS, None, False),
        ("not below", -0.1, None, 0.06, True),
        ("not below", -0.1, None, 0.04, False),
    ],
)
def test_a_rule_decides(rule: Rule, value: float, interval: Interval | None, p_value: float | None, passed: bool):
    assert passes(rule, value, 0.0, interval, p_value) is passed


@pytest.mark.parametrize("rule", ["wholly above", "not below"])
def test_a_rule_without_what_it_needs_is_an_error(rule: Rule):
    with pytest.raises(TypeError, match=rule):
        passes(rule, 0.0, 0.0)
