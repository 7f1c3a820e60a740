"""The map of Throughline: read this file and you know the system.

    raw          what happened, a day at a time, as it became known            raw.py
    features     hourly ticks (dbt on Spark), the feature store                features.py
    online       what requests read: is it fresh, is it what training sees     online.py
    training     a dataset at pinned versions, a model version trained on it   training.py
    experiments  what people submit, beside the pipeline                       experiments.py
    evaluation   candidate against champion and constant; the gate             evaluation.py
    deployment   the endpoint: exactly what the gate released                  deployment.py
    rollouts     stages of a new version beside the champion, by evidence      rollouts.py
    monitoring   inference log, outcomes, calibration                          monitoring.py
    arrivals     what brings raw days: a schedule, and a look at what arrived   arrivals.py
    automation   sensors that retrain for a reason                             automation.py
    maintenance  small tables, without losing a version that is pinned         maintenance.py
    lineage      what each step read and wrote, sent as OpenLineage events     lineage_events.py
    runs         how the process of a run is started on one machine            run_launcher.py

Each declaration in `usecases/` becomes one such graph (`pipeline.py`).
"""

import warnings

from dagster import BetaWarning, Definitions, definitions, in_process_executor

from assets.lineage_events import lineage_events
from assets.maintenance import maintenance
from assets.pipeline import pipeline
from assets.resources import resources
from throughline.foundation.settings import load_settings
from throughline.usecase import load_usecases


@definitions
def throughline() -> Definitions:
    """Built when a code location loads, not when this module is imported."""
    warnings.filterwarnings("ignore", category=BetaWarning)  # ranges of partitions in one run are beta for years now
    settings, usecases = load_settings(), load_usecases().values()
    return Definitions.merge(
        *(pipeline(usecase, settings) for usecase in usecases),
        maintenance(usecases),
        lineage_events(settings),
        # a process per step costs seconds of imports each; on Kubernetes a run is a Pod of its own anyway
        Definitions(resources=resources(settings), executor=in_process_executor),
    )
