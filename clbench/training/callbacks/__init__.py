"""Callbacks of training: accuracy during training, evaluation after tasks, error decomposition, language models."""
