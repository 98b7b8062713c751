"""The `depthvlm` command, one module per subcommand. It may import every other package; nothing imports it."""
