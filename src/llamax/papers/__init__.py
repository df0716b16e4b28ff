"""Papers: numbers bound into prose by name, claims that are evaluated, PDF, HTML and LaTeX from one source."""
