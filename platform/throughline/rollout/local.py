"""Deployment on this machine: a released model version goes to the local model server, or nothing changes.

Owns: refusals, the files under `serving/<usecase>`, the request to load and the check of what is served.
Does not own: the decision to release (`evaluation`), the champion (`promotion.py`), loading (`serving`).
"""

from __future__ import annotations

import contextlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import httpx

from throughline.evaluation import background
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord, Revision, RevisionSet
from throughline.registry import statement
from throughline.registry.approval import RULE as APPROVAL
from throughline.registry.decisions import newest, released, same
from throughline.registry.verification import verified
from throughline.registry.versions import fetch
from throughline.rollout.endpoint import error_of
from throughline.rollout.revision import FILE, only, read_revisions, revision_of, write_revisions
from throughline.usecase import UseCase

LOAD_TIMEOUT_S = 60


def refusal(decision: GateDecision, model: ModelRecord, recorded: GateDecision | None, policy: str) -> str | None:
    """Why the decision does not permit this model version and file to be served; None when it does.

    `recorded`: the decision about it that holds by the history, None when there is none; `policy`: the release's.
    """
    if decision.decision != "release":
        return f"the gate's decision is {decision.decision} ({decision.reasons})"
    if not decision.rules or any(rule.verdict != "pass" for rule in decision.rules):
        return f"the decision is release, but not every rule passed ({decision.reasons or 'no rules'})"
    if decision.model != model.reference:
        return f"the gate decided about {decision.model}"
    if decision.sha256 != model.sha256:
        return f"the gate decided about a file with digest {decision.sha256[:12]}, registered is {model.sha256[:12]}"
    if policy == "manual" and not any(rule.rule == APPROVAL for rule in decision.rules):
        return "the policy is manual, and the decision has no approval"
    if recorded is None:
        return "the history has no decision about it"
    if not same(decision, recorded):
        return f"the history has another decision about it: {recorded.decision}, {recorded.decided_at.isoformat()}"
    return None


def require_release(settings: Settings, usecase: UseCase, model: ModelRecord, decision: GateDecision) -> None:
    """Raises `ThroughlineError` when the decision, or the one that holds by the history, does not permit `model`."""
    holds = newest(settings, usecase.name, model.reference)
    if reason := refusal(decision, model, holds, usecase.release.policy):
        raise ThroughlineError(f"{model.reference} is not deployed: {reason}.")


def serve(settings: Settings, usecase: UseCase, model: ModelRecord) -> EndpointRecord:
    """Serve `model` in place of what is served now; the caller has checked its release. Repeating it is harmless.

    Wall clock. Raises `ThroughlineError` when the server refuses: the revision served before stays, there and on disk.
    """
    if model.name != usecase.name:
        raise ThroughlineError(f"{model.reference} is not deployed: it is not a model of {usecase.name}.")
    folder = settings.serving_home / usecase.name
    revision = revision_of(usecase.name, model, datetime.now(UTC))
    place(settings, usecase, model)
    try:
        previous = read_revisions(folder)
    except ThroughlineError:
        previous = None  # it could not be served either
    write_revisions(folder, only(revision))
    address = settings.url("model_http")
    with client_of(settings, "model_http", LOAD_TIMEOUT_S) as server:
        try:
            _load(server, revision)
        except ThroughlineError:
            _put_back(server, folder, usecase, previous)
            raise
    return EndpointRecord(
        usecase=usecase.name,
        model=model.reference,
        sha256=model.sha256,
        revision=revision.revision,
        address=f"{address}/v1/models/{usecase.name}:predict",
        deployed_at=revision.deployed_at,
    )


def place(settings: Settings, usecase: UseCase, model: ModelRecord) -> None:
    """Copy the registered folder of `model` to the serving home, and the rows that explanations of it compare with; and
    state its release, without which no server loads it.

    Raises `ThroughlineError` when the history has no release of it, or its folder cannot be fetched as registered.
    """
    decision = released(settings, usecase.name, model)
    if decision is None:
        raise ThroughlineError(f"{model.reference} is not deployed: the history has no release of its registered file.")
    folder = settings.serving_home / usecase.name
    place_folder(settings, model, folder / str(model.version))
    background.place(settings, model, folder)
    statement.issue(settings, usecase.name, decision)


def place_folder(settings: Settings, model: ModelRecord, folder: Path) -> None:
    """Have the version's signed folder at `folder`. A copy there that is verified stays: a rollback needs no registry.

    Raises `ThroughlineError` when the registry's folder is refused, too.
    """
    if folder.exists():
        with contextlib.suppress(ThroughlineError):  # the history records the refusal; the registry's replaces it
            verified(settings, model, folder)
            return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        fetched = fetch(settings, model, Path(scratch) / "new").parent
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        fetched.replace(folder)


def _load(server: httpx.Client, revision: Revision) -> None:
    usecase = revision.usecase
    try:
        answer = server.post(f"/v2/repository/models/{usecase}/load")
        if answer.is_error:
            raise ThroughlineError(f"The model server refused {revision.model}: {error_of(answer)}")
        ready = server.get(f"/v2/models/{usecase}/ready")
        served = server.get("/v1/throughline/revisions").raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ThroughlineError(
            f"The model server at {server.base_url} does not answer as it should ({error}): "
            "see `throughline status`, start it with `throughline up`."
        ) from error
    now = [entry["revision"] for entry in served if entry["usecase"] == usecase]
    if ready.is_error or now != [revision.revision]:
        raise ThroughlineError(
            f"The model server loaded {revision.revision} but serves {', '.join(now) or 'nothing'} "
            f"(ready: {not ready.is_error}): see its log."
        )


def _put_back(server: httpx.Client, folder: Path, usecase: UseCase, previous: RevisionSet | None) -> None:
    """Disk and server as before; a server that refused the new revision never stopped serving the old one."""
    if previous is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_revisions(folder, previous)
    # A server that cannot be reached reads the revision on disk when it starts.
    with contextlib.suppress(httpx.HTTPError):
        server.post(f"/v2/repository/models/{usecase.name}/{'load' if previous else 'unload'}")
