"""Models. Each is a `Network` (clbench.models.network): blocks that compute features, and a linear head."""
