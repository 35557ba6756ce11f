"""The user's terminal: progress, tables, errors, and Ctrl-C."""
