"""Running experiments. The process that manages the workers never imports torch."""
