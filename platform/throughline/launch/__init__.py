"""One way to run worker processes: the protocol in `protocol.py`, its implementations in `local.py`."""

from throughline.launch.local import HorovodLauncher, SingleProcessLauncher
from throughline.launch.protocol import Launcher, LaunchFailed, LaunchResult, LaunchSpec

__all__ = ["HorovodLauncher", "LaunchFailed", "LaunchResult", "LaunchSpec", "Launcher", "SingleProcessLauncher"]
