"""Where trials run: workers on this machine or on a Ray cluster, led by one pool."""
