"""A fingerprint of code is the same for the same content and another for any other."""

from __future__ import annotations

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine, fingerprint_code


def test_the_fingerprint_of_code_depends_on_its_content_and_not_on_its_place(tmp_path):
    for name in ("one", "other"):
        folder = tmp_path / name / "package"
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
        (folder / "__pycache__" / "a.pyc").write_bytes(name.encode())
    one, other = (tmp_path / name / "package" for name in ("one", "other"))
    assert fingerprint_code([one]) == fingerprint_code([other])
    (other / "a.py").rename(other / "b.py")
    assert fingerprint_code([one]) != fingerprint_code([other])
    (other / "b.py").rename(other / "a.py")
    (other / "a.py").write_text("x = 2\n")
    assert fingerprint_code([one]) != fingerprint_code([other])


def test_code_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ThroughlineError, match="does not exist"):
        fingerprint_code([tmp_path / "nothing"])
    with pytest.raises(ThroughlineError, match="not installed"):
        fingerprint_code(["no_such_module_at_all"])


def test_combined_parts_keep_their_borders_and_order():
    assert len({combine("ab", "c"), combine("a", "bc"), combine("c", "ab"), combine("abc")}) == 4
