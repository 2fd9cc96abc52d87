"""Subcommands of `baton` that work on manifests, without a cluster."""
