"""Files between the stages: image arrays, tables, atomic writes and locks."""
