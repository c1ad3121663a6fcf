"""A trained model in use: image files in, classes and probabilities out.

- `predictor` loads a model from a folder, an ONNX file or MLflow. All tools predict with it.
- `file_prediction`, `predictions`, `resumable_table` and `gallery` are the work of tools/predict.py.
- `export`, `onnx_export`, `pt2_export`, `quantization` and `agreement` are the work of tools/export.py.
- `onnx_runtime` makes a predictor faster on a CPU, for tools/serve.py.
- `mlflow_format` writes the model that MLflow serves; `mlflow_model` is the code inside it.

Files become pixels in `vision.datasets.image_file`, as in the `preprocess` stage.
"""
