"""Feast's feature server over the same online store: the look-up alone, as `feast serve` answers it with one worker.

Owns: that process. The store is opened as our own materialisation opens it, so the file and its format are the same.
"""

from __future__ import annotations

import sys

import uvicorn

from throughline.featurestore.store import open_store
from throughline.foundation.settings import load_settings
from throughline.usecase import load_usecases


def main() -> None:
    from feast.feature_server import get_app

    app = get_app(open_store(load_settings(), next(iter(load_usecases().values()))))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)


if __name__ == "__main__":
    main()
