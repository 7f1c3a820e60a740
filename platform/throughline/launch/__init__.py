"""One way to run worker processes: the protocol in `protocol.py`, its implementations in `local.py`."""

from throughline.launch.local import LAUNCHERS
from throughline.launch.protocol import Launcher, LaunchFailed, LaunchSpec
