"""An application as an agent may make one; it prints its port, and answers what tests ask."""

import asyncio
import json

from aiohttp import WSMsgType, web


async def told(request: web.Request) -> web.StreamResponse:
    """Tell what came, as JSON, with headers of the application's own."""
    body = await request.read()
    headers = [[name.lower(), value] for name, value in request.headers.items()]
    about = {"method": request.method, "target": request.raw_path, "headers": headers}
    response = web.Response(text=json.dumps(about | {"length": len(body)}))
    response.headers.add("set-cookie", "one=1; Domain=localhost; Path=/")
    response.headers.add("set-cookie", "greylag_preview=mine")
    response.headers["content-security-policy"] = "default-src *"
    response.headers["alt-svc"] = 'h3=":9"'
    response.headers["strict-transport-security"] = "max-age=9; includeSubDomains"
    response.headers["clear-site-data"] = '"cookies"'
    response.headers["nel"] = '{"report_to": "far", "max_age": 9, "success_fraction": 1}'
    response.headers["report-to"] = '{"group": "far", "endpoints": [{"url": "https://a.example"}]}'
    response.headers["reporting-endpoints"] = 'own="/reports"'
    return response


async def stream(request: web.Request) -> web.StreamResponse:
    """Say something at once, and more when asked to; break off when asked to."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: begun\n\n")
    if "break" in request.query:
        assert request.transport is not None
        request.transport.abort()
        return response
    while True:
        await response.write(b"data: on\n\n")
        await asyncio.sleep(0.05)


async def big(request: web.Request) -> web.StreamResponse:
    """Answer 50 MB."""
    response = web.StreamResponse(headers={"content-length": str(50_000_000)})
    await response.prepare(request)
    for _ in range(50):
        await response.write(bytes(1_000_000))
    return response


async def echo(request: web.Request) -> web.StreamResponse:
    """Echo messages of a WebSocket."""
    socket = web.WebSocketResponse(protocols=["vite-hmr"], max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
        if message.data == "bye":
            await socket.close(code=4321)
    return socket


said = 0
"""How many bytes ``talking`` has sent."""


async def talking(request: web.Request) -> web.StreamResponse:
    """Send 100 messages of 1 MB by a WebSocket, and read nothing."""
    global said  # noqa: PLW0603 - an application of one page
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    for _ in range(100):
        await socket.send_bytes(bytes(1_000_000))
        said += 1_000_000
    await asyncio.Event().wait()
    return socket


async def told_said(_request: web.Request) -> web.StreamResponse:
    """Tell how much was sent."""
    return web.Response(text=str(said))


async def lying(_request: web.Request) -> web.StreamResponse:
    """Agree to a WebSocket without having read what was asked."""
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-accept": "x" * 28}
    return web.Response(status=101, headers=headers)


async def away(_request: web.Request) -> web.StreamResponse:
    """Lead away."""
    raise web.HTTPFound("http://localhost:1/elsewhere")


async def page(request: web.Request) -> web.StreamResponse:
    """Answer with a page that leads on by its host's own paths, for other origins too."""
    headers = {
        "access-control-allow-origin": "http://a.example",
        "cache-control": "max-age=5",
        "x-greylag-apart": "1",
        "x-greylag-not-forwarded": "1",
        "x-greylag-theirs-location": "/forged",
    }
    if "away" in request.query:
        raise web.HTTPSeeOther("/login?x=%20", headers=headers)
    text = '<a href="/other">on</a><form action="/sent"><img src="/p.png"></form>'
    return web.Response(text=text, content_type="text/html", headers=headers)


async def main() -> None:
    """Serve on a free port."""
    app = web.Application(client_max_size=0)
    app.router.add_get("/stream", stream)
    app.router.add_get("/big", big)
    app.router.add_get("/socket", echo)
    app.router.add_get("/talking", talking)
    app.router.add_get("/said", told_said)
    app.router.add_get("/away", away)
    app.router.add_get("/page", page)
    app.router.add_get("/lying", lying)
    app.router.add_route("*", "/{rest:.*}", told)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
