"""The search: YAML space files, Optuna sampling, the number of trials, and the study. No Ray."""
