"""The report's sections: one module a section, each returns its text, figures, and tables."""
