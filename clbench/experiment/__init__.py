"""What is to be run: Spec -> plan -> Trial. Nothing here imports torch."""
