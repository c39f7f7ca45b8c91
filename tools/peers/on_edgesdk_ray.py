"""Our application in a replica on Ray Serve, with our batcher in it: beside `ray`, whose batches are Ray's own."""

import os
import sys

from edge_sdk.cli import main

options = ["--threads", os.environ["BENCH_THREADS"], "--max-batch", os.environ["BENCH_BATCH"], "--max-waiting", "1024"]
sys.argv = ["edgesdk", "serve", os.environ["BENCH_SERVER"], "--engine", "ray", "--port", os.environ["BENCH_PORT"]]
sys.argv += options
main()
