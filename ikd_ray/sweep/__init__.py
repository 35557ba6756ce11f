"""Sweeps under Ray: command-line request, cluster, shared artifacts, trials, resume, and checks."""
