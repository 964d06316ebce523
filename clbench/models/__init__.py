"""Models by name. A model is a `Network` (clbench.models.network): blocks that make features, and a linear head."""
