"""The demo, and what its Space and the metric's run. May import the package's prediction code, not cards or push."""
