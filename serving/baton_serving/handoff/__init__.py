"""Handing a request from one worker to another: its pages of KV cache and a snapshot of its state.

`service.HandoffService` is what a scheduler talks to, `ranks.RankTransfer` what every rank runs. See
docs/internals/handoff.md for the message sequence, the state tables and the rule of page ownership.
"""
