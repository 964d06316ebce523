"""An Avalanche benchmark read into tensors; the only place that imports Avalanche."""
