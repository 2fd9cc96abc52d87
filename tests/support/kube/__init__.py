"""A real Kubernetes control plane for tests: `binaries` finds or builds its programs, `control_plane` runs them."""
