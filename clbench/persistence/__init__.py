"""Snapshots of trials: checkpoints, saved models, and states from which training continues."""
