"""Search for the hyperparameters with the best validation accuracy.

Each trial is a DVC experiment and an MLflow run. The section `search` of
params.yaml defines the search: the name of the study, the number of trials, the
sampler, the pruner, and the parameters with their ranges. Run the same command
again to resume an interrupted search. A checkout runs one search at a time.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import argparse

from vision.pipeline.params import load_params
from vision.search.experiments import TrialRunner
from vision.search.figures import log_figures
from vision.search.space import validate_space
from vision.search.study import count_finished, format_best, open_storage, open_study, prepare_study
from vision.tracking import mlflow_run


def main() -> None:
    """params.yaml -> optuna.db, one experiment per trial, and an MLflow run that compares them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = load_params()
    validate_space(params)
    study = open_study(open_storage(), params.search, params.seed, params.train.epochs)
    prepare_study(study, params)
    with mlflow_run.search_run(params, study.user_attrs.get("run_id")) as run:
        study.set_user_attr("run_id", (run.record["mlflow"] or {}).get("run_id"))
        try:
            TrialRunner(study, params, run).run()
        except KeyboardInterrupt:
            if count_finished(study):
                print(format_best(study), flush=True)
            raise
        run.set_tags({"ended": "finished", "search": params.search.model_dump()})
        log_figures(study, run)
    print(format_best(study))


if __name__ == "__main__":
    # run_stage holds the script's lock, so that two searches never run in one checkout at the same time.
    run_stage(main, resume_hint="`python tools/search.py` resumes the search; finished trials are not run again")
