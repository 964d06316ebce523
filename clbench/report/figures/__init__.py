"""The figures of a report: their numbers, and how they are drawn."""
