"""Execution: an experiment carried out. The process that leads the workers never imports torch."""
