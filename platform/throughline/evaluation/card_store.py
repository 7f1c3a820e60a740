"""Model cards in MLflow: signed, among the artifacts of the version's run.

Owns: publishing and reading a card. Does not own: its content (`card.py`), keys (`signing.py`).

The folder `card` of the run holds card.json, which is what `read_card` reads, card.md and card.html with the same
content for people, and the signature of all three.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from pydantic import ValidationError

from throughline.evaluation.card import Card, card_of, render_html, render_markdown
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.tracking import client_of
from throughline.models.description import describe_version, set_tags
from throughline.models.signing import sign, verify
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, ModelRecord
from throughline.registry import history
from throughline.registry import versions as models
from throughline.usecase import UseCase

log = logging.getLogger(__name__)

FOLDER, RECORD = "card", "card.json"


def publish_card(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    dataset: DatasetRecord,
    evaluation: EvaluationRecord,
    decision: GateDecision,
) -> Card:
    """Describe the version in the registry, and store its signed card in place of an earlier one.

    Raises `ThroughlineError` when the declaration leaves out what a card needs: the version is described and has none.
    """
    described = describe_version(settings, usecase, model, dataset, evaluation, decision)
    card = card_of(
        usecase,
        model,
        {**models.provenance_of(settings, model).decoded, **described},
        dataset,
        evaluation,
        decision,
        history.events(settings, usecase.name),
        parameters=client_of(settings).get_run(model.run_id).data.params,
    )
    _store(settings, model, card)
    set_tags(settings, model, {"card": address(model)})
    return card


def address(model: ModelRecord) -> str:
    """MLflow's URI of the card."""
    return f"runs:/{model.run_id}/{FOLDER}"


def read_card(settings: Settings, model: ModelRecord) -> Card:
    """The card of this version and file, signed by a trusted key. Another is refused, and the history records that."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = _fetch(settings, model, Path(scratch))
        try:
            verify(settings, folder, where="it")
            card = Card.model_validate_json((folder / RECORD).read_bytes())
            if (card.model, card.lineage.sha256) != (model.reference, model.sha256):
                raise ThroughlineError(f"it is the card of {card.model}, file {card.lineage.sha256[:12]}")
        except (ThroughlineError, ValidationError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            _record_refusal(settings, model, reason)
            raise ThroughlineError(
                f"The card of {model.reference} is refused: {reason}. Have the gate decide again to publish it anew."
            ) from error
    return card


def current_card(settings: Settings, model: ModelRecord) -> Card:
    """As `read_card`, with the history and the notes as they stand now."""
    events = history.concerning(history.events(settings, model.name), model.reference)
    return read_card(settings, model).model_copy(update={"history": events})


def _store(settings: Settings, model: ModelRecord, card: Card) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / FOLDER
        folder.mkdir()
        (folder / RECORD).write_text(card.model_dump_json(indent=2))
        (folder / "card.md").write_text(render_markdown(card))
        (folder / "card.html").write_text(render_html(card))
        sign(settings, folder)
        client_of(settings).log_artifacts(model.run_id, str(folder), FOLDER)


def _fetch(settings: Settings, model: ModelRecord, scratch: Path) -> Path:
    if not artifacts.is_logged(settings, model.run_id, f"{FOLDER}/{RECORD}"):
        raise ThroughlineError(f"{model.reference} has no card: it gets one when the gate decides about it.")
    return artifacts.fetch_of_run(settings, model.run_id, FOLDER, scratch / FOLDER)


def _record_refusal(settings: Settings, model: ModelRecord, reason: str) -> None:
    try:
        event = history.event_of("refused", model.reference, GRAPH, reason=f"card: {reason}")
        history.append(settings, model.name, event)
    except Exception:  # the card is refused even when the history cannot be written
        log.exception("The refusal of the card of %s is not in the history", model.reference)
