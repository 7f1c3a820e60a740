"""A reference has one text form: what is formatted is parsed back, and nothing else is parsed."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference

TABLE, MODEL = TableReference("u/raw/t", 12), ModelReference("returns", 3)


class Holder(BaseModel):
    table: TableReference
    model: ModelReference


@pytest.mark.parametrize(("reference", "text"), [(TABLE, "u/raw/t@12"), (MODEL, "returns/3")])
def test_a_reference_is_parsed_from_its_own_text(reference: TableReference | ModelReference, text: str) -> None:
    assert str(reference) == text
    assert type(reference).parse(text) == reference


def test_a_table_reference_names_its_parts() -> None:
    assert (TABLE.usecase, TABLE.layer, TABLE.name) == ("u", "raw", "t")


def test_references_are_ordered_by_name_and_then_by_number() -> None:
    assert sorted([TableReference("u/raw/t", 10), TableReference("u/raw/t", 9), TableReference("u/raw/a", 11)]) == [
        TableReference("u/raw/a", 11), TableReference("u/raw/t", 9), TableReference("u/raw/t", 10),
    ]  # fmt: skip
    assert ModelReference("a", 9) < ModelReference("a", 10) < ModelReference("b", 1)


@pytest.mark.parametrize(
    "text",
    ["", "t@1", "raw/t@1", "u/raw/t", "u/raw/t@", "u/raw/t@-1", "u/raw/t@x", "u/raw/t@1 ", "a/b/c/d@1", "../raw/t@1"],
)
def test_a_text_that_is_no_table_reference_is_refused(text: str) -> None:
    with pytest.raises(ThroughlineError, match="is no table version: write USECASE/LAYER/TABLE@VERSION"):
        TableReference.parse(text)


@pytest.mark.parametrize("text", ["", "returns", "returns/", "returns/0", "returns/x", "a/b/1", "returns/1 "])
def test_a_text_that_is_no_model_reference_is_refused(text: str) -> None:
    with pytest.raises(ThroughlineError, match="is no model version: write NAME/VERSION"):
        ModelReference.parse(text)


def test_json_holds_the_text_of_a_reference() -> None:
    held = Holder(table=TABLE, model=MODEL)
    assert held.model_dump(mode="json") == {"table": "u/raw/t@12", "model": "returns/3"}
    assert Holder.model_validate_json(held.model_dump_json()) == held
    with pytest.raises(ValidationError, match="is no table version"):
        Holder.model_validate({"table": {"table": "u/raw/t", "version": 1}, "model": MODEL})
