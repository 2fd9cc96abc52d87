"""Baton's bootstrap server: the rendezvous that knows who is alive, what shape they have, which weights they hold.

Data flows one way:
worker → `client.registration` → `service` → `registry` (pure) → `service` → `client.watch` → gateway.
"""
