"""Classify image files with Spark; write a row for each image to Parquet.

The columns are `image` (its path), `class`, `probability`, `unknown` (whether no class is likely enough), `p_<name>`
for each class, and `error`. A file that cannot be decoded has an error and no class. The job continues.

Every node needs the same Python packages as this machine. Spark sends the model to them.

examples:
    spark-submit tools/spark_predict.py images predictions --model models:/cifar10@champion
    spark-submit --master spark://HOST:7077 tools/spark_predict.py s3a://team/images s3a://team/predictions
    spark-submit tools/spark_predict.py packed predictions --format parquet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vision.datasets.image_file import SUFFIXES
from vision.pipeline.errors import UserError
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.prediction.model_option import add_model_option
from vision.prediction.predictor import download_model, find_model, load_predictor
from vision.tracking.store import MLFLOW_VARIABLES

warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the executors' Python; `python3` otherwise
try:
    from pyspark import SparkConf
    from pyspark.errors import AnalysisException, PySparkException
    from pyspark.sql import DataFrame, Observation, SparkSession
    from pyspark.sql import functions as F
except ImportError:
    sys.exit("spark_predict: pyspark is not installed; run `uv sync --group spark`")

DEFAULTS = {
    # An image counts as at least so many bytes when Spark divides the files into partitions. With Spark's own 4 MiB,
    # a partition would have 32 small images, and starting a task would take longer than classifying them.
    "spark.sql.files.openCostInBytes": "64k",
    "spark.log.level": "OFF",
    "spark.ui.showConsoleProgress": "false",
    **{f"spark.executorEnv.{name}": value for name, value in MLFLOW_VARIABLES.items()},
}
"""Settings that `spark-submit --conf` may override."""


@dataclass(frozen=True)
class Summary:
    """The number of images, how many of them have an error, and the seconds that the job took."""

    images: int
    errors: int
    seconds: float


def main() -> None:
    """INPUT and a model -> OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="folder, file or glob pattern; any file system that Spark reads")
    parser.add_argument("output", metavar="OUTPUT", help="new folder for the Parquet files")
    add_model_option(parser)
    parser.add_argument(
        "--format",
        choices=("binaryFile", "parquet"),
        default="binaryFile",
        help="binaryFile: image files, also in subfolders. parquet: a table with the columns path and content "
        "(default: %(default)s)",
    )
    options = parser.parse_args()
    for name, value in MLFLOW_VARIABLES.items():
        os.environ.setdefault(name, value)
    with mlflow_folder(options.model) as model, spark_session() as spark:
        images = read_images(spark, options.input, options.format)
        summary = write_predictions(classify(spark, images, model), options.output)
    if not summary.images:
        raise UserError(f"{options.input}: no images; the table in {options.output} is empty, delete it")
    print(
        f"{summary.images:,} images, {summary.errors:,} errors, {summary.seconds:,.1f} s, "
        f"{summary.images / summary.seconds:,.0f} images per second: {options.output}"
    )


@contextmanager
def mlflow_folder(model: str) -> Iterator[Path]:
    """Yield a folder with the model in MLflow's format.

    Raises:
        UserError: the model is missing or damaged.
    """
    source = find_model(model)
    with tempfile.TemporaryDirectory() as parent:
        if source.uri.startswith(("models:/", "runs:/")):
            yield download_model(source, Path(parent))
            return
        predictor = load_predictor(source)
        folder = Path(parent, "model")
        example = np.zeros((2, *predictor.image_size, 3), np.uint8)
        settings = ModelSettings(predictor.classes, predictor.min_confidence)
        save_mlflow_model(folder, predictor.network.cpu(), example, settings)
        yield folder


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Start Spark for the block, with the settings of spark-submit and DEFAULTS."""
    conf = SparkConf()
    for name, value in DEFAULTS.items():
        conf.setIfMissing(name, value)
    spark = SparkSession.builder.appName("spark_predict").config(conf=conf).getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def read_images(spark: SparkSession, path: str, format: str) -> DataFrame:
    """Return a table with the columns `path` and `content`.

    Raises:
        UserError: the path does not exist, or the table lacks a column.
    """
    reader = spark.read.format(format).option("recursiveFileLookup", "true")
    if format == "binaryFile":
        reader = reader.option("pathGlobFilter", glob_pattern())
    try:
        return reader.load(path).select("path", "content")
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            raise UserError(f"{path}: does not exist") from None
        raise UserError(f"{path}: {first_line(error)}") from None


def glob_pattern() -> str:
    """A pattern for files whose suffix, in upper or lower case, is that of an image."""
    suffixes = ["".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix) for suffix in sorted(SUFFIXES)]
    return f"*{{{','.join(suffixes)}}}"


def classify(spark: SparkSession, images: DataFrame, model: Path) -> DataFrame:
    """Return a table with the columns `image`, `class`, `probability`, `unknown`, `p_<name>` and `error`.

    Args:
        spark: the session.
        images: a table with the columns `path` and `content`.
        model: a folder in MLflow's format.
    """
    import mlflow.pyfunc

    model_udf = mlflow.pyfunc.spark_udf(spark, str(model), env_manager="local")
    table = images.select(F.col("path").alias("image"), model_udf("content").alias("row")).select("image", "row.*")
    # MLflow's UDF turns None into the text "None" or into false.
    decoded = F.col("probability").isNotNull()
    known = {name: F.when(decoded, F.col(name)) for name in ("class", "unknown")}
    return table.withColumns({**known, "error": F.when(~decoded, F.col("error"))})


def write_predictions(table: DataFrame, path: str) -> Summary:
    """Run the job and write its rows to a new folder.

    Raises:
        UserError: the folder exists, or the job failed.
    """
    observation = Observation()
    counts = F.count(F.lit(1)).alias("images"), F.count("error").alias("errors")
    start = time.perf_counter()
    try:
        table.observe(observation, *counts).write.parquet(path)
    except AnalysisException as error:
        if error.getCondition() == "PATH_ALREADY_EXISTS":
            raise UserError(f"{path}: exists already; give a new folder, or delete it") from None
        raise UserError(f"{path}: {first_line(error)}") from None
    return Summary(**observation.get, seconds=time.perf_counter() - start)


def first_line(error: PySparkException) -> str:
    """The first line of Spark's message."""
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    if not shutil.which("java") and "JAVA_HOME" not in os.environ:
        sys.exit("spark_predict: Java is not installed; Spark needs Java 17 or newer")
    try:
        main()
    except UserError as error:
        sys.exit(f"spark_predict: {error}")
    except PySparkException as error:
        sys.exit(f"spark_predict: {first_line(error)} (`spark-submit --conf spark.log.level=WARN` shows Spark's log)")
