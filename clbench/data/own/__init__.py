"""Benchmarks of user data: read the formats, divide samples into tasks, and build a stream."""
