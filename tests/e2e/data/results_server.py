"""An MCP server over stdio whose tool `give` answers with any kind of result, of any size."""

import base64
import json
import sys
from typing import Any

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()
RESULTS: dict[str, dict[str, Any]] = {
    "image": {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}]},
    "audio": {"content": [{"type": "audio", "data": PNG, "mimeType": "audio/wav"}]},
    "link": {"content": [{"type": "resource_link", "uri": "file:///a", "name": "a"}]},
    "embedded": {
        "content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}}]
    },
    "data": {"content": [], "structuredContent": {"answer": 42}},
    "failed": {
        "content": [
            {"type": "text", "text": "no luck"},
            {"type": "image", "data": PNG, "mimeType": "image/png"},
        ],
        "isError": True,
    },
}
SCHEMA = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}
TOOL = {"name": "give", "description": "Gives a result.", "inputSchema": SCHEMA}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "results", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        kind = params["arguments"]["kind"]
        if kind.isdecimal():
            data = "A" * int(kind)
            return {"content": [{"type": "image", "data": data, "mimeType": "image/png"}]}
        return RESULTS[kind]
    return {}


def message(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["method"] not in {"initialize", "tools/list", "tools/call", "ping"}:
        return {"error": {"code": -32601, "message": "There is no such method."}}
    return {"result": answer(asked["method"], asked.get("params", {}))}


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **message(asked)}), flush=True)
