"""What a report says about its records: grouping, tests, ranks, notes."""
