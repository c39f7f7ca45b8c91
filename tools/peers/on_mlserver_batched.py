"""MLServer as in ``on_mlserver``, but with batches of what has queued."""

import asyncio
import os

from on_mlserver import serve

NO_WINDOW = 1e-9
"""Seconds. It asks for more than 0, which turns batching off; in this little, nothing else comes."""

asyncio.run(serve(int(os.environ["BENCH_BATCH"]), NO_WINDOW))
