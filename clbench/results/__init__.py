"""The results of trials: records, their store, metrics and statistics."""
