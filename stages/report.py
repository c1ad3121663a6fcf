"""One page to look at: how well the model does, where it errs, how it was trained; report/index.html holds it all."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT, main_root
from vision.report import page
from vision.report.results import read_results
from vision.storage import atomic
from vision.tracking import mlflow_run


def main() -> None:
    """Read what the other stages left, draw it, write the page; pictures and tables join the model's MLflow run."""
    params = load_params()
    results = read_results(ROOT)
    html = page.render(params, results)
    file = ROOT / "report" / "index.html"
    with atomic.atomic_write(file) as temporary:
        temporary.write_text(html, encoding="utf-8")
    with mlflow_run.resumed_run(params.tracking, results.run) as run:
        run.describe_as(page.note(results))
        for name, chart in page.charts(results, "light").items():
            run.log_figure(name, chart)
        run.log_artifact(ROOT / "data" / "samples.png", "figures")
        run.log_artifact(file, "report")
        for table in ("history", "confusion_matrix", "per_class", "calibration"):
            run.log_artifact(ROOT / "metrics" / f"{table}.csv", "metrics")
        run.log_metrics({"report/peak_memory_mib": peak_memory()})
    if main_root(ROOT) == ROOT:
        print(f"report: open {file} in a browser")
    else:
        print("report: written; `dvc exp apply` brings it here, and MLflow keeps a copy")


if __name__ == "__main__":
    run_stage(main)
