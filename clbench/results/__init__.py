"""What trials left behind: records, their store, metrics and statistics."""
