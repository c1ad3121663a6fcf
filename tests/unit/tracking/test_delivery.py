"""What reaches a real store when several runs are logged at the same moment, by real processes."""

from pathlib import Path

import pytest

from processes import run_concurrently
from vision.tracking import store

LOG_DATA = """
import sys
from vision.delivery import Delivery
deliveries = [Delivery(sys.argv[1], run_id) for run_id in sys.argv[2:]]
for delivery in deliveries:
    delivery({"call": "log", "tags": {"connected": "yes"}}, None)
print("ready", flush=True)
sys.stdin.readline()
for number, delivery in enumerate(deliveries):
    delivery({"call": "data", "name": "data/processed", "digest": str(number), "source": "{}"}, None)
"""


@pytest.mark.slow
def test_runs_that_enter_the_same_new_data_at_once_all_have_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = store.client(uri)
    experiment = store.experiment_id(client, "pets")
    run_ids = [[client.create_run(experiment).info.run_id for _ in range(5)] for _ in range(4)]
    run_concurrently([[LOG_DATA, uri, *some] for some in run_ids])
    for some in run_ids:
        entered = [client.get_run(run_id).inputs for run_id in some]
        digests = [[data.dataset.digest for data in inputs.dataset_inputs] for inputs in entered if inputs]
        assert digests == [["0"], ["1"], ["2"], ["3"], ["4"]]
