"""A development server as an agent may write one: it reloads its page, and tries to be more."""

import asyncio
import json
import sys

from aiohttp import web

PAGE = """<!doctype html><html lang=en><title>Made by an agent</title><link rel=icon href=data:,>
<h1>Made by an agent</h1><p id=news></p><pre id=tried></pre>
<script>
document.cookie = "script=1";
const hot = new WebSocket(`ws://${location.host}/hot`);
hot.onmessage = (event) => { document.querySelector("#news").textContent = event.data; };
hot.onclose = () => { document.querySelector("#news").textContent = "cut"; };
const attempts = {
  cookie: () => document.cookie.includes("greylag") ? document.cookie : "none",
  dashboard: () => top === window ? "none" : top.document.body.innerHTML,
  storage: () => top === window ? "none" : top.localStorage.length,
  opener: () => opener === null ? "none" : String(opener.location),
  api: async () => (await fetch(`${API}/api/users`, { credentials: "include" })).text(),
  write: async () => (await fetch(`${API}/api/users/me/projects/whole/deactivate`, {
    method: "POST", mode: "no-cors", credentials: "include" })).type,
  neighbour: () => new Promise((resolve, reject) => {
    const src = `//${location.host.replace(/^\\d+/, "files")}/site/page.js`;
    document.body.append(Object.assign(document.createElement("script"), {
      src, onload: () => resolve("loaded"), onerror: reject }));
  }),
  leave: async () => {
    if (top !== window) top.location = "/left";
    return "none";
  },
};
(async () => {
  const said = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    try { said[name] = String(await attempt()); } catch (error) { said[name] = "refused"; }
  }
  said.session = await (await fetch("/session")).text();
  document.querySelector("#tried").textContent = JSON.stringify(said);
})();
</script></html>"""


async def page(_request: web.Request) -> web.Response:
    """Answer the page, with a cookie as of a sign-in of its own."""
    text = PAGE.replace("${API}", sys.argv[1])
    response = web.Response(text=text, content_type="text/html")
    response.set_cookie("session", "own", httponly=True, samesite="Strict")
    response.headers["X-Frame-Options"] = "DENY"
    return response


async def session(request: web.Request) -> web.Response:
    """Tell whether its own cookie came back, and all that did."""
    return web.Response(text=json.dumps(dict(request.cookies)))


async def hot(request: web.Request) -> web.WebSocketResponse:
    """Tell the page that it may show the news."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("hot reload works")
    async for _ in socket:
        pass
    return socket


async def main() -> None:
    """Serve on the port that is asked for."""
    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/session", session), web.get("/hot", hot)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main())
