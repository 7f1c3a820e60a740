"""A serving process as far as the inference log goes: publishes predictions to its outbox without a pause, and has them
shipped. After each request it prints the ids, as a server answers them. For the home of the environment, until it is
killed."""

from __future__ import annotations

import random
import time

from tests.support.events import prediction
from throughline.events.outbox import Outbox
from throughline.events.shipping_process import ShippingProcess
from throughline.foundation.settings import load_settings

REQUESTS_PER_S = 200


def main() -> None:
    settings = load_settings()
    outbox, _shipping = Outbox(settings.outboxes / "0"), ShippingProcess(settings)
    while True:
        answered = [prediction() for _ in range(random.randint(1, 5))]
        outbox.publish(answered)
        print(*(each["id"] for each in answered), flush=True)  # noqa: T201
        time.sleep(1 / REQUESTS_PER_S)


if __name__ == "__main__":
    main()
