"""A report as markdown, HTML, LaTeX, CSV, JSON or text for a terminal."""
