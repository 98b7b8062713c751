"""The demo, and what its Space on the Hub runs. May import the package's prediction code alone."""
