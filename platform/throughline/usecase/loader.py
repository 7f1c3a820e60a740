"""Reading declarations from `usecases/*.yaml`, and the code that they name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.settings import PROJECT_ROOT
from throughline.usecase.declaration import UseCase


def load_usecase(path: Path) -> UseCase:
    """Read and validate one declaration. Raises `ThroughlineError` naming file and field."""
    try:
        return UseCase.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise ThroughlineError(f"{path} cannot be read ({error.strerror}): correct the name.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ThroughlineError(f"{path.name} is not YAML{where} ({problem}): correct the file.") from error
    except ValidationError as error:
        where, problem = first_problem(error)
        count = error.error_count()
        raise ThroughlineError(f"{path.name}: {where or 'declaration'}: {problem} ({count} problem(s)).") from error


def load_usecases(folder: Path = PROJECT_ROOT / "usecases") -> dict[str, UseCase]:
    """All declarations by name, in the order of their file names."""
    return {usecase.name: usecase for usecase in map(load_usecase, sorted(folder.glob("*.yaml")))}


def get_usecase(name: str) -> UseCase:
    usecases = load_usecases()
    if name not in usecases:
        raise ThroughlineError(f"Unknown use case {name!r}: declared are {', '.join(usecases)} (usecases/*.yaml).")
    return usecases[name]


def load_object(reference: str) -> Any:
    """`package.module` or `package.module:attribute` named by a declaration -> the object. Only ever our own code."""
    module, _, attribute = reference.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
