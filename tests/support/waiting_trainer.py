"""A trainer that reports its start, once all of its workers run, and then waits to be killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from throughline.experiment.parameters import CommonParameters as Parameters
from training import worker


def train(task: worker.Task, parameters: Parameters) -> None:
    rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
    # The port is that of one attempt, which counts its own workers.
    here = Path(f"{task.spec.output}-{os.environ['HOROVOD_GLOO_RENDEZVOUS_PORT']}")
    here.mkdir(exist_ok=True)
    (here / str(rank)).touch()
    while len(list(here.iterdir())) < size:
        time.sleep(0.01)
    task.leads = rank == 0
    task.start()
    time.sleep(300)


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
