"""A bare uvicorn that sends each body back: what any server on it pays at least."""

import os

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


uvicorn.run(app, port=int(os.environ["BENCH_PORT"]), access_log=False, log_config=None, loop="uvloop", http="httptools")
