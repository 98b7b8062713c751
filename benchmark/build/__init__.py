"""Builds of the benchmark: frames sampled, written as shards, read and inspected. May import sources."""
