"""The InferenceService API: `v1alpha1` holds the types, `load` reads manifests."""

from baton_operator.api.load import load_manifest, parse_manifest
from baton_operator.api.v1alpha1 import InferenceService

__all__ = ["InferenceService", "load_manifest", "parse_manifest"]
