"""Clients of the bootstrap server: `RegistrationClient` keeps a worker registered, `WatchClient` keeps a view.

Both talk to every replica at once, live on the running asyncio loop and outlast any outage of the servers.
`BootstrapThread` hosts both for a process that has no loop.
"""

from baton_bootstrap.client.assign import assign, assigned
from baton_bootstrap.client.registration import RegistrationClient
from baton_bootstrap.client.thread import BootstrapThread
from baton_bootstrap.client.view import View
from baton_bootstrap.client.waiting import report_waiting
from baton_bootstrap.client.watch import WatchClient

__all__ = [
    "BootstrapThread",
    "RegistrationClient",
    "View",
    "WatchClient",
    "assign",
    "assigned",
    "report_waiting",
]
