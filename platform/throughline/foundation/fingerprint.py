"""Fingerprints of code and of several things together: hex SHA-256, the same on every machine.

Owns: what of a source file counts. Does not own: fingerprints of rows (`lakehouse/content.py`), uses of a fingerprint.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from throughline.foundation.errors import ThroughlineError

# Part of every digest: change it together with the rules below.
RULES = "throughline-fingerprint-1"


def fingerprint_code(places: Iterable[Path | str]) -> str:
    """Digest of source files, wherever the checkout is: paths of files or folders, or names of modules."""
    digest = hashlib.sha256(f"{RULES}\n".encode())
    for place in places:
        root = place if isinstance(place, Path) else _place(place)
        if not root.exists():
            raise ThroughlineError(f"Code {place} does not exist: correct its name.")
        base = root if root.is_dir() else root.parent
        for file in sorted(_files(root), key=lambda file: file.relative_to(base).as_posix()):
            label = place if isinstance(place, str) else root.name
            _add(digest, f"{label}/{file.relative_to(base).as_posix()}", file)
    return digest.hexdigest()


def imports_of(module: str, ours: Sequence[str]) -> tuple[list[str], list[str]]:
    """(our modules, third-party packages) that a module imports, directly or through ours; read from source.

    `ours`: packages whose modules are followed. A package's `__init__` counts only where the package itself is imported
    by name: an `__init__` of ours only re-exports.
    """
    found, foreign, waiting = set(), set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for imported in _imported(name):
            top = imported.partition(".")[0]
            if top not in ours:
                foreign.add(top)
            else:
                waiting.append(imported)
    return sorted(found), sorted(foreign - set(sys.stdlib_module_names))


def fingerprint_imports(module: str, ours: Sequence[str]) -> str:
    """Digest of a module's source and of all it imports from our packages."""
    digest = hashlib.sha256(f"{RULES}\n".encode())
    for name in imports_of(module, ours)[0]:
        _add(digest, name, _source(name))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, label: str, file: Path) -> None:
    content = file.read_bytes().replace(b"\r\n", b"\n")
    digest.update(f"{label} {len(content)}\n".encode())
    digest.update(content)


def _imported(module: str) -> Iterator[str]:
    file = _source(module)
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                # a name in a package may be a module of it, or an object of its __init__
                within = f"{node.module}.{alias.name}"
                yield within if _file_of(within) else node.module


@functools.cache
def _file_of(module: str) -> Path | None:
    """The source of a module; only its top-level package goes through `find_spec`, which would import all parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin) if spec and spec.origin and not rest else None
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    candidates = [path / "__init__.py", path.with_suffix(".py")] if rest else [path / "__init__.py"]
    return next((file for file in candidates if file.is_file()), None)


def combine(*parts: str) -> str:
    """Digest of strings (other digests, names) in their order."""
    return hashlib.sha256(json.dumps([RULES, *parts]).encode()).hexdigest()


def _source(module: str) -> Path:
    file = _file_of(module)
    if file is None:
        raise ThroughlineError(f"Module {module} is not installed: correct its name.")
    return file


def _place(module: str) -> Path:
    """The file of a module, the folder of a package."""
    file = _source(module)
    return file.parent if file.name == "__init__.py" else file


def _files(root: Path) -> list[Path]:
    found = root.rglob("*") if root.is_dir() else [root]
    return [file for file in found if file.is_file() and "__pycache__" not in file.parts]
