"""Cards of models, builds, the metric and Spaces, written from files alone. May import the benchmark."""
