"""The benchmark of `ikd bench`: epochs, other programs, sharing, and the overhead of a sweep."""
