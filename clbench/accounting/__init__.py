"""What methods cost: FLOPs of training and prediction, and estimates made before anything is trained."""
