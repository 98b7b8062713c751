"""Cards, pushing and the demo. Imports the benchmark and the core of the package."""
