"""A code location for a Dagster webserver: evaluation, gate and deployment of a use case with the manual policy.

The assets before them are not in it; the test writes their records.
"""

from __future__ import annotations

import getpass

from dagster import AssetSpec, Definitions, definitions, in_process_executor

from assets.deployment import deployment_assets
from assets.evaluation import evaluation_assets
from assets.resources import resources
from throughline.foundation.settings import load_settings
from throughline.usecase import Bound, UseCase, get_usecase

BEFORE = [("training", "dataset"), ("training", "model"), ("features", "online_store")]


def released_by_people() -> UseCase:
    """The user of the tests may approve what others submitted; the gate has one rule only."""
    declared = get_usecase("flight_delay")
    manual = declared.release.model_copy(update={"policy": "manual", "submitter_may_approve": False})
    gate = {"auc": Bound(at_least=0.72, below=0.8)}
    return declared.model_copy(update={"release": manual, "approvers": [getpass.getuser()], "gate": gate})


@definitions
def location() -> Definitions:
    usecase = released_by_people()
    return Definitions.merge(
        evaluation_assets(usecase),
        deployment_assets(usecase),
        Definitions(
            assets=[AssetSpec([usecase.name, *key]) for key in BEFORE],
            resources=resources(load_settings()),
            executor=in_process_executor,
        ),
    )
