"""The three ways to decide a select."""

import math

import pytest

from stemma.lang.choices import (
    ChoicesSamplingMethod,
    decide,
    greedy_token_selection,
    needs_unconditional,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from stemma.lang.errors import RequestError

WORDS = ["organ", "organism", "antidisestablishmentarianism"]
LOGPROBS = [[-0.1], [-0.1, -0.3], [-0.15, -0.01, 0.0, 0.0]]


def test_length_normalised_takes_the_best_mean_and_counts_zeros():
    decision = decide("token_length_normalized", WORDS, LOGPROBS)
    assert WORDS[decision.index] == "antidisestablishmentarianism"
    assert decision.scores == pytest.approx((-0.1, -0.2, -0.04))


def test_a_row_of_zeros_only_divides_by_its_length():
    assert decide("token_length_normalized", ["a", "b"], [[0.0, 0.0], [-1.0]]).scores == (0.0, -1.0)


def test_greedy_goes_token_by_token_and_pads_with_the_mean():
    decision = decide("greedy_token_selection", WORDS, LOGPROBS)
    assert WORDS[decision.index] == "organ"
    assert decision.details["greedy_logprob_matrix"][0] == pytest.approx([-0.1] * 4)


def test_greedy_ties_go_to_the_lower_index():
    assert decide("greedy_token_selection", ["a", "b"], [[-1.0], [-1.0]]).index == 0


def test_greedy_knows_a_shared_token_by_its_id_whatever_rounding_did():
    rows = [[-0.5000, -2.0], [-0.5001, -0.1]]
    assert decide("greedy_token_selection", ["New York", "New Jersey"], rows).index == 0
    assert decide("greedy_token_selection", ["New York", "New Jersey"], rows, ids=[[7, 1], [7, 2]]).index == 1


def test_unconditional_takes_the_greatest_gain_per_token():
    unconditional = [[None], [None, -1.4], [None, -0.01, 0.0, 0.0]]
    decision = decide("unconditional_likelihood_normalized", WORDS, LOGPROBS, unconditional)
    assert WORDS[decision.index] == "organism"
    assert decision.scores == pytest.approx((-0.1, 0.5, -0.0375))


def test_unconditional_rows_may_lack_their_first_token():
    with_none = decide("unconditional_likelihood_normalized", ["a"], [[-1.0, -2.0]], [[None, -3.0]])
    without = decide("unconditional_likelihood_normalized", ["a"], [[-1.0, -2.0]], [[-3.0]])
    assert with_none.scores == without.scores == (0.0,)


def test_only_one_method_needs_the_unconditional_logprobs():
    names = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
    assert [needs_unconditional(name) for name in names] == [False, False, True]
    with pytest.raises(RequestError, match="needs the unconditional"):
        decide("unconditional_likelihood_normalized", ["a"], [[-1.0]], None)


@pytest.mark.parametrize("method", ["token_length_normalized", "greedy_token_selection"])
@pytest.mark.parametrize("bad", [[], [-math.inf], [-1.0, math.nan]])
def test_a_choice_without_tokens_or_ruled_out_never_wins(method, bad):
    decision = decide(method, ["x", "y"], [bad, [-9.0]])
    assert decision.index == 1
    assert decision.scores == (-math.inf, -9.0)


def test_all_choices_ruled_out_still_decides_without_error():
    for method in ("token_length_normalized", "greedy_token_selection"):
        assert decide(method, ["x", "y"], [[], [-math.inf]]).index == 0


@pytest.mark.parametrize(
    ("choices", "rows", "method", "message"),
    [
        ([], [], "token_length_normalized", "at least one"),
        (["a"], [], "token_length_normalized", "0 rows for 1 choices"),
        (["a"], [[-1.0]], "best", "choices_method must be one of token_length_normalized, .*got 'best'"),
    ],
)
def test_what_cannot_be_decided_is_an_error_that_says_why(choices, rows, method, message):
    with pytest.raises(RequestError, match=message):
        decide(method, choices, rows)


def test_the_methods_can_be_called_with_numbers_of_ones_own():
    given = {
        "choices": WORDS,
        "normalized_prompt_logprobs": [-0.1, -0.2, -0.05],
        "input_token_logprobs": [[[p, i, None] for i, p in enumerate(row)] for row in LOGPROBS],
        "output_token_logprobs": [[], [], []],
        "unconditional_token_logprobs": [
            [[None, 0, None]],
            [[None, 0, None], [-1.4, 1, None]],
            [[None, 0, None], [-0.01, 1, None], [0.0, 2, None], [0.0, 3, None]],
        ],
    }
    assert isinstance(token_length_normalized, ChoicesSamplingMethod)
    assert token_length_normalized(**given).decision == "antidisestablishmentarianism"
    assert (
        greedy_token_selection(
            **{
                **given,
                "input_token_logprobs": [
                    [[p, (i, j), None] for i, p in enumerate(row)] for j, row in enumerate(LOGPROBS)
                ],
            }
        ).decision
        == "organ"
    )
    made = unconditional_likelihood_normalized(**given)
    assert made.decision == "organism" and made.meta_info is not None
    assert made.meta_info["scores"] == pytest.approx([-0.1, 0.5, -0.0375])
    assert not token_length_normalized.requires_unconditional_logprobs
    assert unconditional_likelihood_normalized.requires_unconditional_logprobs
