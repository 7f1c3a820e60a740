"""Small changes of the code that decides make a unit test fail (`python -m tests.drill.mutation` tries all of them)."""

from __future__ import annotations

import pytest

from tests.drill import mutation

pytestmark = [pytest.mark.drill(minutes=14), pytest.mark.timeout(1800)]


def test_nine_of_ten_changes_of_deciding_code_are_noticed() -> None:
    modules = list(mutation.DECIDING)
    mutation.stage(modules)
    mutation.run(minutes=12, processes=2)
    found = mutation.scores(modules)
    tried = sum(score.tried for score in found.values())
    assert tried > 100, "too few mutants were tried to say anything"
    killed = sum(score.killed for score in found.values())
    assert killed / tried >= 0.9, "\n".join(mutation.render(found))
