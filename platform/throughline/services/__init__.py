"""The local services of one home, under one supervisor: `up`, `down`, `status`.

Owns: what runs on one machine, how it is started, watched and stopped. Does not own: what a service does.

    declared.py    what runs: pure, from the settings
    conf.py        the same as a supervisord.conf: pure
    daemon.py      supervisord itself: its socket, starting it, talking to it
    health.py      whether a service answers
    processes.py   which process listens on a port, which belong to a home
    code.py        the fingerprint of the code that the graph is loaded from
    deployed.py    whether what was deployed is served
    control.py     up, down, status
    undelivered.py events and rows that wait or were set aside
"""

from throughline.services.control import (
    ServiceFailed,
    ServiceStatus,
    dead_service,
    down,
    refusals,
    served_models,
    status,
    up,
)
from throughline.services.deployed import Trouble, load_deployed, not_served
from throughline.services.undelivered import undelivered
