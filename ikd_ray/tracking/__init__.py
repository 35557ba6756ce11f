"""Records of a sweep in MLflow; no other subpackage writes to it."""
