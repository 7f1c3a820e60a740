"""What is measured is the full path: the made home has features for every request and a model that uses them."""

from __future__ import annotations

import pytest

from benchmarks.serving_home import ENTITIES, make_home
from throughline.featurestore.online import FeatureReader
from throughline.models.served_model import ServedModel
from throughline.rollout.revision import read_revisions
from throughline.usecase import load_usecases
from throughline.usecase.requests import parse_columns


@pytest.mark.parametrize("usecase", load_usecases().values(), ids=lambda usecase: usecase.name)
def test_every_request_finds_its_features_and_is_scored_by_them(settings, usecase):
    instances = make_home(settings, usecase)
    assert len(instances) == ENTITIES
    read = FeatureReader(settings, usecase).read(parse_columns(usecase, instances))
    assert not any(read.flags(row) for row in range(read.rows))
    values = read.frame
    stored = [name for name in values.columns if name not in usecase.request]
    assert values.select(stored).null_count().sum_horizontal().item() == 0
    folder = settings.serving_home / usecase.name
    served = read_revisions(folder)
    assert served
    revision = served.stable
    served = ServedModel.load(folder / revision.file, revision.sha256)
    assert served.numeric == stored
    scores = served.score(values)
    assert 0 <= scores.min() < scores.max() <= 1
    assert not any(served.outside_domain(values))
