"""Weights on a sentence: their shares, by hand."""

import pytest

from syncattn.page.heads import Weights, sentence, share

HEAD = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
SOFT = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]


def test_shares_are_of_what_may_be_heard():
    assert share(HEAD, hears_itself=False) == pytest.approx((2 / 3, 2 / 3))
    assert share(SOFT, hears_itself=True) == pytest.approx((1.0, 2.0))
    assert share([[0.0]], hears_itself=False) == (0.0, 0.0)


def test_every_head_has_a_row_of_the_table():
    page = sentence(Weights("abc", ["<OSN>", "T"], ["#000", "#111"], [[[HEAD]], [[SOFT]]], [False, True]), 1)
    assert 'data-sentence="1"' in page and "&lt;OSN&gt;" in page
    assert "<td>67 %</td><td>0.7</td>" in page and "<td>100 %</td><td>2.0</td>" in page
