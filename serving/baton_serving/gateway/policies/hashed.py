"""Policies that every replica of the gateway decides alike without asking the others: they look at no load.

Rendezvous hashing (Thaler and Ravishankar 1998): each worker gets a hash of its id and the request's key, the highest
wins. A worker that goes moves only its own keys, evenly over the rest; one that comes takes its share and no more.
"""

from __future__ import annotations

import xxhash

from baton_serving.gateway.policies.prefix_keys import seed_of
from baton_serving.gateway.policies.simple import power_of_two
from baton_serving.gateway.snapshot import Choice, RequestFacts, Snapshot

AFFINE_BYTES = 512  # requests whose prompts begin alike so far are taken for relatives


def consistent_hash(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """By session, else by how the prompt begins."""
    key = facts.session.encode() or bytes(facts.prompt[:AFFINE_BYTES])
    return _rendezvous(snapshot, facts.model, key)


def session_affinity(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """By session; requests without one go to the less loaded of two."""
    if not facts.session:
        return power_of_two(snapshot, facts)
    return _rendezvous(snapshot, facts.model, facts.session.encode())


def _rendezvous(snapshot: Snapshot, model: str, key: bytes | memoryview) -> Choice:
    """Weights are part of the key, so that requests move over one by one while weights change, not with each pod."""
    digest = xxhash.xxh3_64_intdigest
    seeds: dict[str, int] = {}
    scores: list[float] = []
    for one in snapshot.candidates:
        seed = seeds.get(one.weight_digest)
        if seed is None:
            seed = seeds[one.weight_digest] = digest(key, seed_of(model, one.weight_digest))
        scores.append(-digest(one.id.encode(), seed))
    return Choice(scores.index(min(scores)), tuple(scores), range(len(scores)))
