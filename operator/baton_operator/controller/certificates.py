"""Certificates as a round brings them about."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from baton_operator.certificates import KeyMaker, Lifetimes, rotate
from baton_operator.certificates.secrets import secrets, stored
from baton_operator.planner import Context, Observed
from baton_operator.planner.objects import Object
from baton_operator.planner.pods import CERTIFIED

log = logging.getLogger(__name__)


def certified(context: Context, observed: Observed, now: datetime) -> Sequence[Object]:
    """The Secrets that the service is to have now. Nothing in the log tells keys."""
    before = stored(context, observed)
    after = rotate(before, CERTIFIED, now, KeyMaker(), Lifetimes())
    for part, leaf in after.leaves.items():
        if before.leaves.get(part) != leaf:
            log.info("%s/%s: new certificate files for %s", context.namespace, context.name, part)
    return tuple(secrets(context, observed, after))
