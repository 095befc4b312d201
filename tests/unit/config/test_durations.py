"""Durations: the table of http-api.md 1.1, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageserver.config import Duration


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("80sec", "1m 20s"),
        ("10 m", "10m"),
        ("24 hour", "1day"),
        ("2 days", "2days"),
        ("7 days", "7days"),
        ("23 hours", "23h"),
        ("5000 ms", "5s"),
        ("1h30m", "1h 30m"),
        ("1month 2days 3ns", "1month 2days 3ns"),
        ("2y", "2years"),
        ("0", "0s"),
        ("7us", "7us"),
        ("300 s", "5m"),
        ("1week", "7days"),
    ],
)
def test_durations_are_read_and_written_in_the_common_form(text: str, written: str) -> None:
    assert str(Duration.parse(text)) == written


@pytest.mark.parametrize("text", ["", "10", "s", "10 parsecs", "1.5s", "-1s", "10s,"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@given(st.integers(min_value=0, max_value=10**20))
def test_every_duration_survives_its_text(nanos: int) -> None:
    assert Duration.parse(str(Duration(nanos))) == Duration(nanos)
