"""The decision: demand and capacity in, workers by role out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Final

from baton_operator.autoscaling.demand import Demand, measure
from baton_operator.autoscaling.memory import Memory, RoleMemory, Series
from baton_operator.autoscaling.model import Bounds, Fleet, Targets

PERIOD: Final = 15.0  # seconds from one decision to the next
_TREND = 600.0  # seconds over which the trend of demand is read
_LATEST = 180.0  # seconds whose own trend counts where it runs away from the long one
_RUNAWAY = 1.15  # by so much
_SLACK = 0.04  # part of their work that fewer workers must leave free
_TURN_SLACK = 0.12  # the same when the last change was to more workers
_CALM = 600.0  # seconds after more workers were added before any are taken away


@dataclass(frozen=True)
class Decision:
    """Workers by role, and a sentence for each role whose number changes."""

    wanted: Mapping[str, int]
    reasons: Mapping[str, str]


def decide(
    memory: Memory, fleet: Fleet, targets: Targets, bounds: Mapping[str, Bounds], now: float
) -> tuple[Decision, Memory]:
    """Numbers for the roles in `bounds`; those of others stand. Called sooner than `PERIOD` it changes nothing.

    Workers are added as soon as they are needed. They are taken away when fewer would have done for `targets.shrink`
    and none were added for ten minutes, so that numbers do not swing. Prefill and decode are zero only together.
    """
    if fleet.waiting and not all(fleet.wanted.values()):
        return _wake(memory, fleet, bounds, now)
    if memory.at is not None and now < memory.at + PERIOD * 0.9:
        return Decision(fleet.wanted, {}), memory
    demand, memory = measure(memory, fleet, targets, now)
    if memory.busy_at is None:
        memory = replace(memory, roles={role: RoleMemory(raised_at=now) for role in fleet.wanted})
    if memory.busy_at is None or (demand is not None and not demand.idle):
        memory = replace(memory, busy_at=now)
    if not any(fleet.wanted.values()) or demand is None:
        return Decision(fleet.wanted, {}), memory
    if _asleep(memory, fleet, targets, bounds, now):
        return Decision(dict.fromkeys(fleet.wanted, 0), dict.fromkeys(bounds, "no request came")), memory
    needs, memory = _needs(memory, fleet, demand, targets, now)
    wanted = dict(fleet.wanted)
    for role, bound in bounds.items():
        wanted[role] = _clamp(_steady(memory.role(role), fleet, role, targets, now), max(1, bound.least), bound.most)
    wanted = _flipped(memory, fleet, wanted, bounds, now) if targets.flip else wanted
    wanted = _in_ratio(wanted, targets.ratio, bounds)
    if not fleet.settled:
        wanted = {role: max(count, fleet.wanted[role]) for role, count in wanted.items()}
    for role, count in wanted.items():
        if count > fleet.wanted[role]:
            memory = memory.with_role(role, replace(memory.role(role), raised_at=now, rising=True))
        elif count < fleet.wanted[role]:
            memory = memory.with_role(role, replace(memory.role(role), rising=False))
    return Decision(wanted, _reasons(fleet.wanted, wanted, needs)), memory


def _wake(memory: Memory, fleet: Fleet, bounds: Mapping[str, Bounds], now: float) -> tuple[Decision, Memory]:
    """One worker of each role: requests wait, and nobody is there."""
    wanted = {role: max(1, count, bounds[role].least if role in bounds else 0) for role, count in fleet.wanted.items()}
    for role in wanted:
        memory = memory.with_role(role, replace(memory.role(role), raised_at=now, rising=True))
    reason = f"{fleet.waiting} requests wait and no worker is there"
    return Decision(wanted, dict.fromkeys(bounds, reason)), replace(memory, busy_at=now)


def _asleep(memory: Memory, fleet: Fleet, targets: Targets, bounds: Mapping[str, Bounds], now: float) -> bool:
    """Whether nothing was asked for so long that all may go, provided that every role may."""
    may = all(role in bounds and bounds[role].least == 0 for role in fleet.wanted)
    return may and fleet.settled and memory.busy_at is not None and now - memory.busy_at >= targets.idle


def _needs(
    memory: Memory, fleet: Fleet, demand: Demand, targets: Targets, now: float
) -> tuple[dict[str, float], Memory]:
    """Workers that each role needs, in fractions, with what is foreseen; remembered for as long as `shrink` looks."""
    prompts = memory.demands.get("prompts", Series()).add(now, demand.prompts, _TREND)
    answers = memory.demands.get("answers", Series()).add(now, demand.answers, _TREND)
    memory = replace(memory, demands={"prompts": prompts, "answers": answers})

    def at(ahead: float) -> dict[str, float]:
        prompt_workers = _foreseen(prompts, now, ahead) / demand.prompts_each + demand.backlog
        answer_workers = _foreseen(answers, now, ahead) / demand.answers_each
        if fleet.divided:
            return {"prefill": prompt_workers, "decode": answer_workers}
        return {"decode": prompt_workers + answer_workers}

    needs, later, far = at(targets.lead), at(targets.shrink), at(_CALM)
    for role, need in needs.items():
        before = memory.role(role)
        lasting = before.lasting.add(now, max(need, later[role]), targets.shrink)
        memory = memory.with_role(role, replace(before, need=need, foreseen=far[role], lasting=lasting))
    return needs, memory


def _foreseen(series: Series, now: float, ahead: float) -> float:
    """Demand within `ahead` seconds: along its trend, or along the latest one where that runs away from it."""
    trend = max(0.0, series.trend(now), series.trend(now + ahead) if series.span() > _TREND / 2 else 0.0)
    recent = series.since(now - _LATEST)
    latest = max(recent.trend(now), recent.trend(now + ahead))
    return latest if latest > _RUNAWAY * trend else trend


def _steady(role: RoleMemory, fleet: Fleet, name: str, targets: Targets, now: float) -> int:
    """The number that stands, unless more are needed now, or fewer were for long."""
    count = fleet.wanted[name]
    if role.need > count:
        return ceil(role.need)
    watched = role.lasting.span() >= targets.shrink - 1.5 * PERIOD
    if watched and now - role.raised_at >= _CALM:
        if role.rising:  # to add them again within that time would be two changes of direction
            return min(count, ceil(max(role.lasting.most(), role.foreseen) * (1 + _TURN_SLACK)))
        return min(count, ceil(role.lasting.most() * (1 + _SLACK)))
    return count


def _flipped(
    memory: Memory, fleet: Fleet, wanted: dict[str, int], bounds: Mapping[str, Bounds], now: float
) -> dict[str, int]:
    """A role that needs more takes what the other has to spare now: it gets it back as fast, so nobody need wait to see
    whether fewer do for long. Not within ten minutes after the other was given more.
    """
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        more, giver = wanted.get(role, 0) - fleet.wanted.get(role, 0), memory.role(other)
        gives = other in bounds and fleet.settled and wanted[other] == fleet.wanted[other]
        if more <= 0 or not gives or now - giver.raised_at < _CALM:
            continue
        need = max(giver.need, giver.foreseen, giver.lasting.since(now - _LATEST).most())
        least = max(1, bounds[other].least, ceil(need * (1 + _TURN_SLACK)))
        wanted = {**wanted, other: fleet.wanted[other] - min(more, max(0, fleet.wanted[other] - least))}
    return wanted


def _in_ratio(wanted: dict[str, int], ratio: tuple[float, float], bounds: Mapping[str, Bounds]) -> dict[str, int]:
    """The role that has too few gets more; where it may not, the other gives up what it could not use."""
    if "prefill" not in wanted or "prefill" not in bounds or "decode" not in bounds:
        return wanted
    least, most = ratio
    prefill, decode = wanted["prefill"], wanted["decode"]
    decode = min(max(decode, ceil(prefill / most)), bounds["decode"].most)
    prefill = min(max(prefill, ceil(decode * least)), bounds["prefill"].most)
    prefill = max(1, bounds["prefill"].least, min(prefill, floor(decode * most)))
    decode = max(1, bounds["decode"].least, min(decode, floor(prefill / least)))
    return {"prefill": prefill, "decode": decode}


def _clamp(count: int, least: int, most: int) -> int:
    return min(max(count, least), most)


def _reasons(before: Mapping[str, int], after: Mapping[str, int], needs: Mapping[str, float]) -> dict[str, str]:
    return {
        role: f"its requests need {needs[role]:.1f} workers" for role, count in after.items() if count != before[role]
    }
