"""A discrete-event simulation of a fleet behind the gateway's own policies and admission."""
