"""How a stage starts, ends and fails; paths, parameters and progress."""
