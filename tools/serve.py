"""Serve a trained model: a page to drop images on, and JSON for programs.

    python tools/serve.py                                   # the model in models/
    python tools/serve.py --model models:/cifar10@champion  # the champion, also when it changes
    curl -F image=@cat.jpg http://127.0.0.1:8000/predict

Open http://127.0.0.1:8000 in a browser. The API is described at /docs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import argparse
import logging

from vision.pipeline.errors import UserError
from vision.prediction.model_option import add_model_option
from vision.serving.application import create_application
from vision.serving.metrics import Metrics
from vision.serving.served_model import ServedModel
from vision.serving.server import open_socket, run_server
from vision.serving.uploads import UploadLimits


def main() -> None:
    """Load the model and serve it until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_option(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 chooses a free one (default: 8000)")
    parser.add_argument("--max-megabytes", type=float, default=20, help="limit of an upload (default: 20)")
    parser.add_argument("--poll-seconds", type=float, default=10, help="how often to look up an alias (default: 10)")
    options = parser.parse_args()
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: expected a number from 0 to 65535")
    if options.max_megabytes <= 0:
        raise UserError(f"--max-megabytes {options.max_megabytes:g}: expected a number above 0")
    logging.basicConfig(format="serve: %(message)s")
    logging.getLogger("vision").setLevel(logging.INFO)

    bound = open_socket(options.host, options.port)
    metrics = Metrics()
    served = ServedModel(options.model, options.poll_seconds, metrics.set_model)
    app = create_application(served, metrics, UploadLimits(round(options.max_megabytes * 1e6)))
    bound.listen()  # from now on connections wait until the application has started
    source = served.predictor.source
    host, port = bound.getsockname()[:2]
    name = " ".join(filter(None, (source.name, source.version)))
    print(f"serve: {name} at http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C stops it", flush=True)
    run_server(app, bound)


if __name__ == "__main__":
    run_stage(main, resume_hint="the same command starts the server again", single=False)
