"""How a stage starts, ends and fails; errors, paths, parameters, validation and progress.

To add a parameter, add it to params.yaml and to the class of its section in params.py. To add a metric, add a field to
the class of its file or row in metrics_schemas.py, and compute it in the stage that writes the file.
"""
