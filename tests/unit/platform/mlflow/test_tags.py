"""What is written as a tag is read back with its type, and a tag that is not of its type is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.mlflow.tags import decode, encode

TAGS = {
    "sha256": "12" * 32,
    "commit": "0123456789",  # all digits, and a text
    "lock": "true",
    "trained_until": datetime(2013, 3, 18, 4, 30, tzinfo=UTC),
    "parameters": {"leaves": [7, 31], "rate": 0.1},
    "base_rate": 0.2,
    "holdout_auc": 0.7654,
    "parent": ModelReference("shop", 1),
    "dataset_table": TableReference("shop/training/dataset", 4),
    "table_versions": [TableReference("shop/raw/orders", 7)],
    "cause": "drift",
    "mlflow.runName": "trial 3",
}


def test_what_is_written_is_read_back():
    written = encode(TAGS)
    assert all(isinstance(text, str) for text in written.values())
    assert decode(written) == TAGS


def test_text_is_written_unchanged_under_the_prefixed_name():
    assert encode({"sha256": "ab", "parent": ModelReference("shop", 1), "cause": "drift"}) == {
        "throughline.sha256": "ab",
        "throughline.parent": "shop/1",
        "cause": "drift",
    }


def test_none_is_not_written():
    assert encode({"parent": None}) == {}


def test_a_tag_without_the_prefix_stays_text():
    assert decode({"sha256": "of something else", "throughline.made_up": "x"}) == {"throughline.made_up": "x"}


@pytest.mark.parametrize(
    ("key", "text"),
    [("trained_until", "soon"), ("parameters", "{"), ("parent", "shop"), ("holdout_auc", "good"), ("base_rate", "")],
)
def test_a_value_of_another_type_is_refused_by_name(key, text):
    with pytest.raises(ThroughlineError, match=rf"tag throughline\.{key} cannot be read"):
        decode({f"throughline.{key}": text})
