"""`python -m serving`: the model server of this home."""

from __future__ import annotations

import logging
import sys
import warnings

from serving.kserve_package import import_server_modules
from throughline.featurestore.online import FeatureReader
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.usecase import load_usecases


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # KServe's endpoints answer with a class that FastAPI deprecates: nothing to be done here, once per endpoint.
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    import_server_modules()
    from serving.server import run  # after it: this imports KServe, too

    try:
        run(load_settings(), load_usecases(), FeatureReader, sys.argv[1:])
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
