"""Replies with the prompts they answer."""

from __future__ import annotations

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ptmech import refusal
from ptmech.artifact import Artifact
from ptmech.errors import FormatError


def test_every_reply_stands_beside_its_prompt(synthetic):
    frame = refusal.completions(synthetic).frame
    assert frame.columns[-3:] == ["prompt", "completion", "refused"]
    texts = dict(synthetic.statements().select("row_uid", "text").iter_rows())
    assert [texts[uid] for uid in frame["row_uid"]] == frame["prompt"].to_list()
    stored = refusal.scores(synthetic).completions
    assert_frame_equal(frame.drop("prompt"), stored)


def test_rates_are_shares_of_these_replies(synthetic):
    found = refusal.completions(synthetic)
    for row in refusal.scores(synthetic).frame.iter_rows(named=True):
        replies = found.frame.filter(
            pl.col("stage") == row["stage"],
            pl.col("prompts") == row["prompts"],
            pl.col("intervention") == row["intervention"],
            pl.col("direction") == row["direction"],
        )
        assert replies["refused"].mean() == pytest.approx(row["refusal_rate"])
    assert found.artifact == synthetic.id


def test_a_reply_to_no_prompt_is_damage(synthetic, monkeypatch):
    fewer = synthetic.statements().filter(pl.col("dataset") != "harmless")
    monkeypatch.setattr(Artifact, "statements", lambda *_: fewer)
    with pytest.raises(FormatError, match=r"\d+ completions of .* are replies to no prompt"):
        refusal.completions(synthetic)
