"""A Kubernetes cluster with real pods on this machine, in namespaces of its own: needs root, leaves nothing behind."""
