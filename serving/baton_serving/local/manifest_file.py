"""Follows a manifest file: what changes in it reaches the running service."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from baton_operator.api import load_manifest
from baton_operator.errors import ManifestError
from baton_serving.errors import ConfigError
from baton_serving.local.plan import Machine, plan_workers
from baton_serving.local.rollout import LocalRollout
from baton_serving.logs import fields

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks


class ManifestFile:
    """`run` hands every change of the file to `rollout`; one that is no manifest is told and waited out."""

    def __init__(self, path: Path, rollout: LocalRollout, machine: Machine, *, undivided: bool) -> None:
        self._path = path
        self._rollout = rollout
        self._machine = machine
        self._undivided = undivided
        self._text = path.read_bytes()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self.look()

    def look(self) -> None:
        """Take in what the file says now, if it is news."""
        try:
            text = self._path.read_bytes()
        except OSError:
            return  # it is being replaced
        if text == self._text:
            return
        self._text = text
        try:
            service = load_manifest(self._path)
            plan = plan_workers(service, self._path.parent, self._machine, undivided=self._undivided)
        except (ManifestError, ConfigError) as error:
            log.error("the manifest is not followed", extra=fields(path=str(self._path), reason=str(error)))
            return
        self._rollout.change(plan, service)
