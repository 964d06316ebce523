"""One trial: Trial in, Record out."""
