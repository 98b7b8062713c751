"""DepthVLM-Bench: sources, builds, systems, scoring, reports. Imports the core of the package, and nothing above it."""
