"""The benchmark behind : epochs, other programs, sharing, and a sweep's overhead."""
