"""The `aromni` command: one file per subcommand."""
