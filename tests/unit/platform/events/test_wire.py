"""CloudEvents over HTTP: what is sent in any of the modes is read as it was meant; what is wrong is named."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.events import binary, event, structured
from throughline.events.cloudevent import STRUCTURED
from throughline.events.schema import BadEvent
from throughline.events.wire import parse_batch, parse_one

SAME = {"id": "6f2c2c5e-8a52-4b1c-9a55-0d5b1c9d2f10"}
TYPE = {"content-type": STRUCTURED}


def test_an_event_is_the_same_in_binary_structured_and_batched_mode():
    sent = structured(**SAME)
    headers, body = binary(sent)
    assert (headers["ce-id"], headers["ce-subject"], headers["ce-sequence"]) == (SAME["id"], "flight_delay", "1")
    assert headers["ce-time"] == "2013-04-01T04:00:00Z"
    wanted = event(**SAME)
    assert parse_one(headers, body) == wanted
    assert parse_one(TYPE, json.dumps(sent).encode()) == wanted
    assert parse_batch(json.dumps([sent]).encode()) == [wanted]
    data = sent.pop("data")
    sent["data_base64"] = base64.b64encode(json.dumps(data).encode()).decode()
    assert parse_one(TYPE, json.dumps(sent).encode()) == wanted


@given(source=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_text_in_an_attribute_is_read_as_it_was_sent_percent_encoded(source):
    headers, body = binary(structured(source=source))
    assert all(0x21 <= ord(letter) < 0x7F for letter in headers["ce-source"])
    assert parse_one(headers, body).source == source


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("urn%3Aa%20%E2%82%AC", "urn:a \u20ac"),
        ('"with \\"quotes\\" and \\\\"', 'with "quotes" and \\'),
        ("100%25%2541", "100%%41"),  # one round of decoding
        ("\u20ac".encode().decode("latin-1"), "\u20ac"),  # UTF-8 that was not encoded
        ("a%zz", "a%zz"),
    ],
)
def test_an_attribute_in_a_header_is_decoded_as_the_http_binding_has_it(header, read):
    headers, body = binary(structured())
    assert parse_one(headers | {"ce-source": header}, body).source == read


@pytest.mark.parametrize(
    ("headers", "body", "problem"),
    [
        ({"ce-specversion": None}, None, "ce-specversion"),
        ({"ce-specversion": "0.3"}, None, "ce-specversion"),
        ({"ce-type": "org.kubeflow.serving.inference.request"}, None, "ce-type"),
        ({"ce-id": "not-a-uuid"}, None, "id"),
        ({"ce-id": None}, None, "id"),
        ({"ce-sequence": "0"}, None, "sequence"),
        ({"ce-subject": "../../etc"}, None, "subject"),
        ({"ce-time": "2013-04-01T04:00:00"}, None, "time"),
        ({"ce-source": "%ED%A0%80"}, None, "ce-source"),
        ({"ce-source": "%ff"}, None, "ce-source"),
        ({}, b"{broken", "data"),
        ({}, b"[]", "data"),
        ({}, b"{}", "wall_time"),
        ({}, b"", "data"),
    ],
)
def test_an_event_that_cannot_be_stored_is_refused_by_name(headers, body, problem):
    good_headers, good_body = binary(structured())
    changed = {name: value for name, value in (good_headers | headers).items() if value is not None}
    with pytest.raises(BadEvent, match=problem):
        parse_one(changed, good_body if body is None else body)


@given(
    body=st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda it: json.dumps(it).encode())
)
def test_no_body_is_more_than_refused(body):
    for headers in (TYPE, binary(structured())[0]):
        with pytest.raises(BadEvent):
            parse_one(headers, body)
