"""Baton's bootstrap server: the rendezvous that knows who is alive, what shape they have, which weights they hold.

Data flows one way:
worker → `client.registration` → `service` → `registry` (pure) → `service` → `client.watch` → gateway.
"""

import os

# gRPC's C core reads this once when it is loaded; left alone it reports every lost connection on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
