"""Examples of a task: read from files or the hub, tokenized, and put into batches."""
