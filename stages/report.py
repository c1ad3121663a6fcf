"""Write the report and the model card.

report/index.html has test scores, mistakes, training curves, data and parameters on one page. report/model_card.md says
what the model is for, how good it is, and where its limits are.
"""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT, main_root
from vision.report import charts, page
from vision.report.results import read_results
from vision.storage import atomic
from vision.tracking import mlflow_run


def main() -> None:
    """Outputs of all other stages -> report/; the charts, tables and the card are added to the model's MLflow run."""
    params = load_params()
    results = read_results(ROOT)
    html = page.render(params, results)
    card = page.render_card(params, results)
    file, card_file = ROOT / "report" / "index.html", ROOT / "report" / "model_card.md"
    for path, text in ((file, html), (card_file, card)):
        with atomic.atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with mlflow_run.resumed_run(params.tracking, results.run.model_dump()) as run:
        run.set_description(page.summary(results))
        for name, figure in charts.make_charts(results, "light").items():
            run.log_figure(name, figure)
        run.log_artifact(ROOT / "data" / "samples.png", "figures")
        run.log_artifact(file, "report")
        run.log_artifact(card_file, "report")
        run.log_model_card(card)
        for table in ("history", "confusion_matrix", "per_class", "calibration", "calibration_before", "corruptions"):
            run.log_artifact(ROOT / "metrics" / f"{table}.csv", "metrics")
        run.log_metrics({"report_peak_memory_mib": peak_memory()})
    if main_root(ROOT) == ROOT:
        print(f"report: open {file} in a browser")
    else:
        print("report: written in the experiment's copy; `dvc exp apply` copies it here, and MLflow has it too")


if __name__ == "__main__":
    run_stage(main)
