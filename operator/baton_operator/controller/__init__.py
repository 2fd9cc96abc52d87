"""The rim around the planner: watches and lists the cluster, carries out plans, holds the Lease, answers probes."""
