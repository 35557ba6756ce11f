"""The benchmark of `sweeps/bench.py`: epochs, other programs, sharing, and the overhead of a sweep."""
