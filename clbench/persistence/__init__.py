"""Files of a trial's state: checkpoints, kept models, and states to continue from."""
