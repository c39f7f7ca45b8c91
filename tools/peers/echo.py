"""A bare uvicorn that sends each body back: what any server on it pays at least. Tells its address on stderr."""

import os
import socket
import sys

import uvicorn


async def app(scope, receive, send):
    """ASGI's entry."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


listener = socket.create_server(("127.0.0.1", int(os.environ.get("BENCH_PORT", "0"))))
print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
config = uvicorn.Config(app, access_log=False, log_config=None, loop="uvloop", http="httptools", lifespan="off")
uvicorn.Server(config).run(sockets=[listener])
