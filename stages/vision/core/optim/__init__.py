"""Optimizers, learning-rate schedules, and the moving average of the weights (EMA).

To add an optimizer, add a case to `build_optimizers` in optimizers.py, and its name to `OptimizerName` in
core/config.py and to `Optimizer.name` in pipeline/params.py. For a schedule these are `build_schedule` in schedules.py,
`ScheduleName` and `Train.schedule`.
"""
