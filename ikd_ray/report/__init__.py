"""The report on a sweep: figures and tables as one HTML page, PNG files, and Markdown."""
