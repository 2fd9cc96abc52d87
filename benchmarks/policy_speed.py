"""CPU time of one routing decision, by policy: a prompt of 32 KB before 64 workers, half of it held by some of them.

    python benchmarks/policy_speed.py [--workers 64] [--prompt-bytes 32768]

The last line is all that the gateway does for a request whose both legs are chosen cache-aware, each among so many
workers: cut the prompt into keys, choose twice, remember both, write the header.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.policies.prefix_keys import prefix_keys
from baton_serving.gateway.policies.scored import cache_aware
from baton_serving.gateway.snapshot import RequestFacts, Snapshot

ROUNDS = 2000


@dataclass(slots=True)
class Worker:
    """A candidate whose loads are plain attributes."""

    id: str
    incarnation: str = "1"
    weight_digest: str = "w"
    running: int = 4
    queued_tokens: int = 0
    used_tokens: int = 64_000


def microseconds(call: Callable[[int], object]) -> float:
    """CPU time of one call, the best of five rounds: what the code takes, without the neighbours."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time_ns()
        for number in range(ROUNDS):
            call(number)
        best = min(best, (time.process_time_ns() - began) / ROUNDS / 1000)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--prompt-bytes", type=int, default=32768)
    args = parser.parse_args()
    workers = tuple(Worker(f"prefill-{n}", queued_tokens=n * 37 % 500) for n in range(args.workers))
    system = b"s" * (args.prompt_bytes // 2)
    prompts = [system + b"%08d" % n * (args.prompt_bytes // 16) for n in range(256)]
    memory = Memory()
    snapshot = Snapshot(workers, memory, 0.0)

    def facts(number: int) -> RequestFacts:
        prompt = prompts[number % len(prompts)]
        return RequestFacts(
            number=number, model="m", prompt=prompt, prompt_tokens=len(prompt) // 4, session=f"s{number % 100}"
        )

    for number in range(256):  # some hold the beginning that all share, and some whole prompts
        memory.routed(facts(number), (workers[number % (args.workers // 2 + 1)],), 0.0)
    print(f"keys of the prompt   {microseconds(lambda n: prefix_keys(prompts[n % 256], 1)):6.2f} us, once a request")
    print(f"facts                {microseconds(facts):6.2f} us")
    one = facts(1)
    memory.keys(one, "w")
    for name, policy in POLICIES.items():
        print(f"{name:20} {microseconds(lambda n, policy=policy: policy(snapshot, one)):6.2f} us")  # type: ignore[misc]
    print(f"{'remember':20} {microseconds(lambda n: memory.routed(one, (workers[3],), 0.0)):6.2f} us")
    print(f"{'header':20} {microseconds(lambda n: memory.header(one, workers[3])):6.2f} us")
    decodes = tuple(Worker(f"decode-{n}", queued_tokens=n * 37 % 500) for n in range(args.workers))
    legs = snapshot, Snapshot(decodes, memory, 0.0)

    def both(number: int) -> None:
        asked = facts(number)
        chosen = [leg.candidates[cache_aware(leg, asked).index] for leg in legs]
        memory.routed(asked, chosen, 0.0)
        memory.header(asked, chosen[1])

    print(f"{'cache_aware, both':20} {microseconds(both):6.2f} us a request")


if __name__ == "__main__":
    main()
