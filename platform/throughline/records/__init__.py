"""What the assets of the graph hand to each other: small, typed, stored as JSON (`store.py`).

Owns: the fields of each record, from feature store to endpoint. Instants are timezone-aware, in UTC.
"""

from throughline.records.base import Record
from throughline.records.deployment import EndpointRecord, Revision, RevisionSet, Role, Sticky
from throughline.records.evaluation import (
    SCORE_BINS,
    Background,
    BehaviourCheck,
    EvaluationRecord,
    GlobalImportance,
    Interval,
    Metrics,
    ReliabilityBin,
    ServingCost,
    SliceMetrics,
)
from throughline.records.features import FeatureRecord, FeatureStoreRecord, FeatureViewRecord, OnlineStoreRecord
from throughline.records.governance import GateDecision, HistoryAction, HistoryEvent, RuleVerdict
from throughline.records.monitoring import CalibrationRecord, InferenceLogRecord, OutcomesRecord
from throughline.records.training import DatasetRecord, ModelOrigin, ModelRecord
