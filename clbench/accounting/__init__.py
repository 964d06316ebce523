"""Costs of methods: FLOPs of training and prediction, and estimates that are made before training."""
