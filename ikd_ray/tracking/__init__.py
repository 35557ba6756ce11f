"""MLflow: the only room that writes to it."""
