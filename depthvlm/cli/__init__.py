"""The `depthvlm` command: one module for each of its commands. May import every other room; nothing imports it."""
