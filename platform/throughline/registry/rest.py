"""MLflow asked over REST: its own client loads every plug-in there is, Feast and torch among them, for seconds.

Owns: one question, and the pages of a search. Does not own: what is asked, and what follows from an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from throughline.errors import ThroughlineError
from throughline.settings import Settings


def ask(settings: Settings, question: str, **parameters: Any) -> dict[str, Any] | None:
    """The answer of this home's MLflow; None for what it does not have. Raises when it does not answer."""
    import httpx

    uri = settings.url("mlflow")
    try:
        answer = httpx.get(f"{uri}/api/2.0/mlflow/{question}", params=parameters, timeout=30)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise silent(settings, error) from error


def model_versions(settings: Settings, name: str) -> Iterator[dict[str, Any]]:
    """Every version of a model as MLflow describes it. A search that is not found is a failure, not an empty one."""
    page = ""
    while True:
        question = {"filter": f"name = '{name}'", "max_results": 1000, "page_token": page}
        content = ask(settings, "model-versions/search", **question)
        if content is None:
            raise silent(settings, "404 for a search")
        yield from content.get("model_versions", [])
        page = content.get("next_page_token", "")
        if not page:
            return


def silent(settings: Settings, why: object) -> ThroughlineError:
    """What to raise when MLflow does not answer as it should."""
    return ThroughlineError(
        f"MLflow does not answer at {settings.url('mlflow')} ({why}): start it with `throughline up`."
    )
