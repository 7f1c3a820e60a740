"""KServe's server without KServe's client and without pandas.

Owns: importing KServe's server modules in a process that serves, for two thirds of its memory and half of its start:
`kserve/__init__.py` imports the Kubernetes client and a class per custom resource, `kserve.protocol.infer_type` imports
pandas (and with it pyarrow) to name `DataFrame` in annotations of helpers that are not used here.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType


def import_server_modules() -> None:
    """Import `kserve.model_server` and what it needs; afterwards `kserve` itself is a package without content.

    Nothing happens in a process that has imported KServe already.
    """
    spec = find_spec("kserve")
    if "kserve" in sys.modules or spec is None:
        return
    sys.modules["kserve"] = module_from_spec(spec)
    pandas = ModuleType("pandas")
    pandas.__dict__["DataFrame"] = type("DataFrame", (), {})
    added = sys.modules.setdefault("pandas", pandas) is pandas
    importlib.import_module("kserve.model_server")
    if added:
        del sys.modules["pandas"]
