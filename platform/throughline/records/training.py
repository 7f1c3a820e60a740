"""A training dataset, and a model version trained on one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from throughline.foundation.references import ModelReference, TableReference
from throughline.records.base import Record


class DatasetRecord(Record):
    """A training dataset: rows of a spine joined point in time with a feature service at pinned table versions.

    The table has the columns `row_key` (string, unique), `prediction_time` and `label_available_at` (UTC), `label`
    (0 or 1) and one column per name in `numeric` and `categorical`; a missing value is null.
    """

    usecase: str
    table: TableReference
    path: str
    fingerprint: str = Field(description="Of the logical content, whatever the table version.")
    as_of: datetime
    rows: int
    numeric: list[str]
    categorical: list[str]
    service: str = Field("", description="The feature service that gave the features.")
    views: dict[str, list[str]] = Field(default_factory=dict, description="Feature view -> the features it gave.")
    inputs: list[TableReference] = Field(description="The pinned versions that were read.")
    holdout_from: datetime = Field(description="Rows whose prediction time is at or after this are never trained on.")

    def at(self, version: int) -> DatasetRecord:
        """The same rows under another version of their table."""
        return self.model_copy(update={"table": TableReference(self.table.table, version)})


class ModelOrigin(Record):
    """A model and what it was made from, before the registry gives it a version."""

    name: str
    run_id: str
    sha256: str = Field(description="Of its ONNX file.")
    dataset_fingerprint: str
    trained_until: datetime = Field(
        description="Latest prediction or label time of any row learned from: it is judged on later rows only."
    )
    trainer: str
    parameters: dict[str, Any]


class ModelRecord(ModelOrigin):
    """A registered model version."""

    version: int
    uri: str = Field(description="Folder with `model.onnx`, resolved: no models:/ or mlflow-artifacts:/ scheme.")

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.version)
