"""One way to run worker processes: the protocol in `protocol.py`, its implementations in `local.py`."""

from throughline.launch.local import (
    LAUNCHERS,
    ElasticLauncher,
    HorovodLauncher,
    SingleProcessLauncher,
    TorchrunLauncher,
)
from throughline.launch.protocol import Launcher, LaunchFailed, LaunchResult, LaunchSpec, WorkerFailed
