"""Rows of requests as the columns that a predictor reads."""

from __future__ import annotations

import polars as pl

from throughline.usecase.requests import Columns


def columns_of(rows: pl.DataFrame) -> Columns:
    """Instants as microseconds since 1970."""
    return {name: rows[name].to_physical().to_list() for name in rows.columns}
