"""How a stage starts, ends and fails; errors, paths, parameters, validation and progress."""
