"""A recipe's fingerprint covers everything that decides the model; wrong parameters are refused before a start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from throughline.experiment.recipe import flat, recipe_of
from throughline.experiment.request import SearchRequest, TrainingRequest, as_of_instant, check
from throughline.foundation import fingerprint
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import fingerprint_imports, imports_of
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase, get_usecase

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def test_defaults_are_part_of_a_recipe_and_an_alias_is_the_parameter_itself(settings: Settings, usecase: UseCase):
    recipe = recipe_of(settings, usecase, "mlp", {"lr": 0.01})
    assert recipe.parameters["learning_rate"] == 0.01
    assert recipe.parameters["activation"] == "relu"
    assert "lr" not in recipe.parameters
    assert recipe == recipe_of(settings, usecase, "mlp", {"learning_rate": "0.01"})


@pytest.mark.parametrize(
    "other",
    [
        lambda recipe: {"parameters": {**recipe.parameters, "seed": 1}},
        lambda recipe: {"processes": 3},
        lambda recipe: {"threads": 2},
        lambda recipe: {"code": "0" * 64},
        lambda recipe: {"preparation": "0" * 64},
        lambda recipe: {"frameworks": {**recipe.frameworks, "torch": "0"}},
        lambda recipe: {"launcher": "torchrun"},
        lambda recipe: {"precision": "bfloat16"},
    ],
)
def test_whatever_decides_the_model_makes_another_recipe(settings: Settings, usecase: UseCase, other):
    recipe = recipe_of(settings, usecase, "mlp")
    changed = recipe.model_copy(update=other(recipe))
    assert changed.on("data") != recipe.on("data")
    assert recipe.on("data") != recipe.on("other data")
    assert recipe.model_copy(update={"trainer": "renamed"}).on("data") == recipe.on("data")


def test_a_members_parameter_is_named_with_its_member(settings: Settings, usecase: UseCase):
    recipe = recipe_of(settings, usecase, "ensemble", {"mlp.lr": 0.02, "seed": 4})
    assert {member.trainer: member.seed for member in recipe.members} == {"lightgbm": 4, "mlp": 4}
    assert recipe.members[1].parameters["learning_rate"] == 0.02
    assert flat(recipe)["mlp.learning_rate"] == 0.02


@pytest.mark.parametrize(
    ("trainer", "overrides", "problem"),
    [
        ("forest", {}, "Trainer forest is unknown to flight_delay: declared are ensemble"),
        ("mlp", {"layers": 3}, "Parameter layers is unknown; known are seed, epochs"),
        ("mlp", {"lr": -1}, "Parameter learning_rate -1: input should be greater than 0"),
        ("mlp", {"epochs": "many"}, "Parameter epochs 'many'"),
        ("ensemble", {"mlp.layers": 3}, "Parameter layers is unknown"),
        ("ensemble", {"keras.lr": 3}, "Parameter keras.lr is unknown"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    settings: Settings, usecase: UseCase, trainer, overrides, problem
):
    with pytest.raises(ThroughlineError, match=problem) as refusal:
        recipe_of(settings, usecase, trainer, overrides)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def code(tmp_path: Path, monkeypatch) -> Path:
    """A package of our own beside a foreign one."""
    package = tmp_path / "ours_here"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from ours_here import unrelated\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "trainer.py").write_text("import numpy\nfrom ours_here.inner import used\n")
    (package / "inner" / "used.py").write_text(
        "def f():\n    import torch\n    from ours_here.inner.deep import thing\n"
    )
    (package / "inner" / "deep.py").write_text("thing = 1\n")
    (package / "unrelated.py").write_text("raise RuntimeError('nothing may import me')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fingerprint._file_of.cache_clear()
    yield package
    fingerprint._file_of.cache_clear()


def test_code_is_what_a_module_imports_and_nothing_is_run_to_find_out(code: Path):
    ours, foreign = imports_of("ours_here.trainer", ["ours_here"])
    assert ours == ["ours_here.inner.deep", "ours_here.inner.used", "ours_here.trainer"]
    assert foreign == ["numpy", "torch"]
    before = fingerprint_imports("ours_here.trainer", ["ours_here"])
    (code / "unrelated.py").write_text("changed = True\n")
    assert fingerprint_imports("ours_here.trainer", ["ours_here"]) == before
    (code / "inner" / "deep.py").write_text("thing = 2\n")
    assert fingerprint_imports("ours_here.trainer", ["ours_here"]) != before


def request(**fields: object) -> TrainingRequest:
    return TrainingRequest.model_validate({"usecase": "flight_delay", **fields})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"as_of": "2013-01-01", "dataset": "abc"}, "one of as_of, dataset and table"),
        ({"trainer": "auto"}, "give the number of trials"),
        ({"trainer": "auto", "search": {"trials": 2}, "parameters": {"seed": 1}}, "set none of them"),
        ({"search": SearchRequest(trials=2), "commit": "HEAD"}, "search first"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(fields, problem):
    with pytest.raises(ValidationError, match=problem):
        request(**fields)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"as_of": "2013-04-02"}, "is in the future: the data clock stands at 2013-04-01"),
        ({"as_of": "2012-12-31"}, "before the data, which begin on 2013-01-01"),
        ({"as_of": "2013-01-01"}, "before the data"),
        ({"as_of": "spring"}, "no day and no instant"),
        ({"as_of": "2013-03-01T00:00:00"}, "has no time zone"),
        ({"table": "flight_delay/raw/weather@3"}, "no version of a training dataset"),
        ({"table": "flight_delay/training/dataset"}, "is no table version"),
        ({"trainer": "mlp", "parameters": {"layers": 3}}, "Parameter layers is unknown"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_refused_at_once(settings: Settings, usecase: UseCase, fields, problem):
    with pytest.raises(ThroughlineError, match=problem) as refusal:
        check(settings, usecase, request(**fields), NOW)
    assert "\n" not in str(refusal.value)


def test_a_day_is_a_local_one_and_an_instant_has_its_zone(usecase: UseCase):
    assert as_of_instant(usecase, "2013-03-15", NOW) == datetime(2013, 3, 15, 4, tzinfo=UTC)
    assert as_of_instant(usecase, "2013-03-15T12:00:00Z", NOW) == datetime(2013, 3, 15, 12, tzinfo=UTC)
