"""What watches training: accuracy while learning, evaluations after tasks, error decomposition."""
