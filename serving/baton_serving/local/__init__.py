"""An InferenceService as local processes: `plan` says which, `supervisor` keeps them running, `service` is the handle.

Data flows one way: manifest → `plan` (pure) → `supervisor` → `child` (one process each).
"""

from baton_serving.local.service import LocalService

__all__ = ["LocalService"]
