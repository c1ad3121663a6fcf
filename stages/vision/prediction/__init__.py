"""A trained model in use: image files in, classes and probabilities out.

`predictor` loads a model from models/ or MLflow. `mlflow_format` writes the model that MLflow serves. Both turn files
into pixels by `vision.datasets.image_file`, as the `preprocess` stage does.
"""
