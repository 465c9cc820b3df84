"""What `larder top` makes of two looks at the metrics, and how token ids and kv_ranks are read."""

from pathlib import Path

import pytest

from cli.commands.keys import rank_text
from cli.sample import COMMANDS, HIT, HIT_IN_L1, LOOKED_UP, LOOKUP_RESULTS, Sample, rates_between, read_metrics
from cli.token_input import read_tokens

STATUS = {"is_healthy": True}
RESULTS = {"l1": 50, "l2": 10, "late": 10, "absent": 30, "failed": 0}


def sample(at: float, **metrics: float) -> Sample:
    return Sample(at, STATUS, {}, metrics)


def test_series_are_summed_over_their_labels() -> None:
    text = "\n".join(
        [
            "# HELP a_total Things",
            'a_total{kind="x"} 1.0',
            'a_total{kind="y z"} 2',
            'a_bucket{le="+Inf"} 9',
            f'{COMMANDS}{{outcome="taken"}} 5',
            f'{COMMANDS}{{outcome="replied"}} 4',
            "b 6.2e+06",
            "broken",
            "c nonsense",
        ]
    )

    assert read_metrics(text) == {"a_total": 3.0, COMMANDS: 5.0, "b": 6.2e6}


def test_rates_are_of_the_time_between_two_looks() -> None:
    before = sample(10.0, **{LOOKED_UP: 1000, HIT: 1000, HIT_IN_L1: 1000, "larder_http_request_total": 10})
    now = sample(12.0, **{LOOKED_UP: 1400, HIT: 1100, HIT_IN_L1: 1050, "larder_http_request_total": 16})

    rates = rates_between(before, now)

    assert (rates.hit_share, rates.l1_share, rates.l2_share) == (0.25, 0.125, 0.0)
    assert rates.http_per_s == 3.0


def test_the_first_look_has_shares_since_the_start_and_no_rates() -> None:
    rates = rates_between(None, sample(10.0, **{LOOKED_UP: 8, HIT: 4}))

    assert (rates.hit_share, rates.http_per_s) == (0.5, None)


def test_misses_are_told_by_their_reason() -> None:
    text = "\n".join(f'{LOOKUP_RESULTS}{{result="{name}"}} {count}' for name, count in RESULTS.items())
    now = Sample(1.0, STATUS, {}, {**read_metrics(text), LOOKED_UP: 100})

    assert list(rates_between(None, now).missed.items()) == [("absent", 0.3), ("late", 0.1)]


def test_a_counter_that_was_reset_counts_from_zero() -> None:
    before = sample(10.0, **{LOOKED_UP: 1000, HIT: 900})

    assert rates_between(before, sample(11.0, **{LOOKED_UP: 10, HIT: 5})).hit_share == 0.5
    assert rates_between(before, sample(11.0, **{LOOKED_UP: 1000, HIT: 900})).hit_share is None


@pytest.mark.parametrize("text", ["[1, 2,3]", "1 2\n3", "1,2,3", "1, 2\t3\n", " [1,2,3]\n", "1\n2\n3,"])
def test_token_ids_come_as_json_or_as_plain_numbers(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text(text)

    assert read_tokens(str(file)) == ("[1,2,3]", 3)


@pytest.mark.parametrize("text", ["a b", "1 -2", "[1,[2]]", '{"a":1}', "1.5", "4294967296", "1,,2", "[1", "true"])
def test_what_are_no_token_ids_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text(text)

    with pytest.raises(ValueError):
        read_tokens(str(file))


def test_a_rank_is_shown_with_its_world_size() -> None:
    assert rank_text(8 << 24 | 3 << 16 | 4 << 8 | 3) == "3 of 8"
    assert (rank_text(-1), rank_text(1 << 40)) == ("-1", str(1 << 40))
