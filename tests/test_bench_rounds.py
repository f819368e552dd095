"""The bench of federated rounds: what it measures, and that it notices what is left behind."""

import pytest

from bench import rounds

ROUNDS = 8
SMALL = {"widths": [8, 16, 4], "settled": 4, "count": 2}


@pytest.mark.slow
def test_rounds_leave_nothing_behind() -> None:
    row = rounds.measure(ROUNDS, traced=False, **SMALL)
    rounds.check_growth([row], ROUNDS)
    assert row["clients"] == 2
    assert row["CPU milliseconds a round"]["repetitions"] == ROUNDS - 4


def test_rounds_that_are_traced() -> None:
    """What is kept of them cannot be judged here, as pytest keeps what torch logs."""
    row = rounds.measure(2, traced=True, **SMALL | {"settled": 0})
    assert row["traced"] == 2


@pytest.mark.slow
def test_what_is_kept_of_a_round_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    align = rounds.align

    def keeping(*args, **options):
        kept.append(align(*args, **options))
        return kept[-1]

    monkeypatch.setattr(rounds, "align", keeping)
    row = rounds.measure(ROUNDS, traced=False, **SMALL)
    with pytest.raises(AssertionError):
        rounds.check_growth([row], ROUNDS)
