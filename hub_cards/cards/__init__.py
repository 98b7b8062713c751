"""Cards of models, builds, metric and Space, written from files alone. May import the benchmark."""
