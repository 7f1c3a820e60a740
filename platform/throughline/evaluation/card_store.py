"""Where model cards are kept: signed, among the artifacts of the version's run, and refused when they are not its own.

Owns: publishing and reading a card. Does not own: its content (`card.py`), keys (`signing.py`).

The folder `card` of the run holds card.json, from which a card is read, card.md and card.html, which say the same to
people, and the signature over all three.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from pydantic import ValidationError

from throughline.evaluation.card import Card, card_of, concerning, render_html, render_markdown
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.tracking import client_of
from throughline.models.description import describe_version, set_tags
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
    """Describe the version in the registry, and keep its card, signed. Repeating it makes the card anew.

    Raises `ThroughlineError` when the declaration leaves out what a card must say: the version is described then, and
    has no card.
    """
    described = describe_version(settings, usecase, model, dataset, evaluation, decision)
    card = card_of(
        usecase,
        model,
        {**models.provenance_of(settings, model).decoded, **described},
        dataset,
        evaluation,
        decision,
        history.events(settings, usecase.name, target=model.name),
        parameters=client_of(settings).get_run(model.run_id).data.params,
    )
    _keep(settings, model, card)
    set_tags(settings, model, {"card": address(model)})
    return card


def address(model: ModelRecord) -> str:
    """Where the card is, in MLflow's words."""
    return f"runs:/{model.run_id}/{FOLDER}"


def read_card(settings: Settings, model: ModelRecord) -> Card:
    """The card of this very version and file, signed by a trusted key. Raises on any other, and tells the history."""
    from throughline.models.signing import verify

    with tempfile.TemporaryDirectory() as scratch:
        folder = _fetch(settings, model, Path(scratch))
        try:
            verify(settings, folder, where="it")
            card = Card.model_validate_json((folder / RECORD).read_bytes())
            if (card.model, card.lineage.sha256) != (model.reference, model.sha256):
                raise ThroughlineError(f"it is the card of {card.model}, file {card.lineage.sha256[:12]}")
        except (ThroughlineError, ValidationError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            _tell_refused(settings, model, reason)
            raise ThroughlineError(
                f"The card of {model.reference} is refused: {reason}. Have the gate decide again to publish it anew."
            ) from error
    return card


def current_card(settings: Settings, model: ModelRecord) -> Card:
    """As `read_card`, with the history and the notes as they stand now."""
    told = history.events(settings, model.name, target=model.name)
    return read_card(settings, model).model_copy(update={"history": concerning(model.reference, told)})


def _keep(settings: Settings, model: ModelRecord, card: Card) -> None:
    from throughline.models.signing import sign

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


def _tell_refused(settings: Settings, model: ModelRecord, reason: str) -> None:
    try:
        event = history.event_of("refused", model.reference, GRAPH, reason=f"card: {reason}")
        history.append(settings, model.name, event)
    except Exception:  # what is refused stays so, whether or not it can be written down
        log.exception("The refusal of the card of %s could not be told in the history", model.reference)
