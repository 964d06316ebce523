"""Run trials in workers on this machine or on a Ray cluster, which a pool manages."""
