"""Fingerprints of content: of a table's rows, of code, of several things together.

Owns: what counts (values, nulls, NaN, types, column names) and what does not (order of rows and columns, chunks, how
a text is stored). Does not own: uses of a fingerprint. Each is a hex SHA-256, the same on every machine.
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

import numpy as np
import polars as pl

from throughline.foundation.errors import ThroughlineError

# Part of every digest: change it together with the rules below.
RULES = "throughline-fingerprint-1"
_PLACE = "\0place"  # no column is called so


def fingerprint_frame(frame: pl.DataFrame | pl.LazyFrame, keys: list[str], exclude: Iterable[str] = ()) -> str:
    """Digest of the rows, ordered by `keys`; `exclude` names columns that are not content (run ids, ...).

    -0.0 is 0.0; every NaN is the same NaN and differs from null. When the keys of a lazy frame are unique, only one
    other column is in memory at a time. Raises `ThroughlineError` for a missing key or a type without a stable form.
    """
    excluded = set(exclude)
    schema = frame.lazy().collect_schema()
    if missing := [key for key in keys if key not in schema or key in excluded]:
        raise ThroughlineError(f"Fingerprint keys {', '.join(missing)} are no columns of the table: correct the keys.")
    columns = sorted(name for name in schema if name not in excluded)
    rows = frame.lazy().select(columns)
    keyed = rows.select(keys or columns).collect()
    if not keys or keyed.is_duplicated().any():
        # rows with equal keys are ordered by their other columns
        rows = rows.with_columns(pl.col(pl.Float32, pl.Float64) + 0.0).collect().lazy()
        keyed = rows.select(*keys, *(name for name in columns if name not in keys)).collect()
    order = keyed.with_row_index(_PLACE).sort(keyed.columns, nulls_last=True)[_PLACE]
    digest = hashlib.sha256(f"{RULES}\n{order.len()}\n".encode())
    for name in columns:
        digest.update(f"{json.dumps(name)} {schema[name]}\n".encode())
        for part in _content(rows.select(name).collect().to_series().gather(order)):
            digest.update(part)
    return digest.hexdigest()


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


def _content(column: pl.Series) -> Iterator[bytes]:
    """A column as bytes of its logical content only: where the nulls are, then the values."""
    yield np.packbits(column.is_null().to_numpy()).tobytes()
    kind = column.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        yield from _texts(column.cast(pl.String))
    elif kind == pl.String:
        yield from _texts(column)
    elif kind == pl.Binary:
        values = column.fill_null(b"")
        yield values.bin.size().cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
        yield b"".join(values)
    elif kind.is_float():
        values = column.fill_null(0.0).to_numpy() + 0.0
        yield np.where(np.isnan(values), np.nan, values).astype(values.dtype.newbyteorder("<")).tobytes()
    elif kind.is_integer() and kind not in (pl.Int128, getattr(pl, "UInt128", None)):
        values = column.fill_null(0).to_numpy()
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()
    elif kind == pl.Boolean:
        yield np.packbits(column.fill_null(False).to_numpy()).tobytes()
    elif kind.is_temporal():
        yield column.to_physical().fill_null(0).cast(pl.Int64).to_numpy().astype("<i8").tobytes()
    elif isinstance(kind, pl.Array):
        yield from _content(column.arr.to_list())
    elif isinstance(kind, pl.List):
        yield column.list.len().fill_null(0).cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
        yield from _content(column.filter(column.list.len() > 0).explode())
    elif isinstance(kind, pl.Struct):
        for field in kind.fields:
            yield f"{json.dumps(field.name)}\n".encode()
            yield from _content(column.struct.field(field.name))
    elif kind == pl.Null:
        return
    elif isinstance(kind, pl.Decimal) or kind.is_integer():
        yield from _texts(column.cast(pl.String))
    else:
        raise ThroughlineError(f"Column {column.name} of type {kind} has no stable form: leave it out or cast it.")


def _texts(column: pl.Series) -> Iterator[bytes]:
    values = column.fill_null("")
    yield values.str.len_bytes().cast(pl.UInt64).to_numpy().astype("<u8").tobytes()
    yield (values.str.join("").item() if len(values) else "").encode()


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
