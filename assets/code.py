"""Code versions: the code, and the parts of a declaration, that decide what an asset holds.

Owns: how a code version is made; none is counted by hand. Each asset names its modules: those without which it would
hold something else, not all that they import, so that an unrelated change materialises nothing again.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from throughline.foundation.fingerprint import combine, fingerprint_code


def code_version(modules: Iterable[Path | str], *declared: BaseModel | str) -> str:
    """Of modules by name, other files by path, and declarations: a change of any has the asset materialised again."""
    return combine(fingerprint_code(modules), *(d if isinstance(d, str) else d.model_dump_json() for d in declared))
