"""Subcommands of `baton`: those that work on manifests, and those that need a cluster."""
