"""Messages by the older contract: streamed, awaited, or as provider tokens."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from greylag.agentd.api.requests import (
    follow,
    messages_of,
    read_object,
    refusal,
    session_object,
    text,
    too_large,
)
from greylag.agentd.extensions import Extension, ExtensionService, extension_definition
from greylag.agentd.journal.tail import JournalTail
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.records import SessionRecord
from greylag.agentd.sessions import SessionService
from greylag.agentd.settings import SettingsService, SettingState
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import sse
from greylag.common.clock import rfc3339

# A character may be written as six (\uXXXX) in JSON, and there is a little around the message.
_ESCAPED = 6
_AROUND = 64 * 1024
_MESSAGE_ID = 200


@dataclass(frozen=True, slots=True)
class Message:
    """What a user said.

    Attributes:
        text: the words.
        message_id: the client's own id of the message, if it gave one.
        session_id: the session that the body names, if it does.
    """

    text: str
    message_id: str | None
    session_id: str | None


class MessageReader:
    """Reads a message from a request; `limit` is the most bytes (UTF-8) that it may have."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    async def read(self, request: Request) -> Message:
        """Return the message.

        Raises:
            RequestError: invalid_request or too_large.
        """
        body = await read_object(request, self._limit * _ESCAPED + _AROUND)
        words = text(body, "message")
        if words is None or not words.strip():
            raise invalid("message must be text, and not empty.")
        if len(words.encode()) > self._limit:
            raise too_large(f"The message is longer than {self._limit} bytes.")
        message_id = text(body, "message_id")
        if message_id is not None and not 1 <= len(message_id) <= _MESSAGE_ID:
            raise invalid(f"message_id must have from 1 to {_MESSAGE_ID} characters.")
        return Message(words, message_id, text(body, "session_id"))


class MessageRoutes:
    """Handlers for what is sent to a session."""

    def __init__(self, turns: TurnEngine, reader: MessageReader) -> None:
        self._turns = turns
        self._reader = reader

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/sessions/{session_id}"
        return [
            Route(f"{one}/messages", self.messages, methods=["POST"]),
            Route(f"{one}/send", self.send, methods=["POST"]),
            Route(f"{one}/stream", self.stream, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        """Start a turn and stream its events."""
        session_id = request.path_params["session_id"]
        message = await self._reader.read(request)
        try:
            started = await self._turns.start(session_id, message.text, message.message_id)
        except RequestError as error:
            return _failed_start(error, session_id)
        return await follow(self._turns, started.turn.turn_id, request)

    async def send(self, request: Request) -> Response:
        """Start a turn, wait for its end and return the answer."""
        session_id = request.path_params["session_id"]
        message = await self._reader.read(request)
        try:
            started = await self._turns.start(session_id, message.text, message.message_id, "sync")
        except RequestError as error:
            return refusal(error, session_id=session_id)
        turn = await self._turns.wait_ended(started.turn.turn_id)
        if turn.status == "error":
            body = {"error": "Agent processing error", "message": turn.error}
            body |= {"session_id": session_id, "code": turn.error_code}
            return JSONResponse(body, status_code=500)
        return JSONResponse(
            {
                "message": "Message processed successfully",
                "session_id": session_id,
                "assistant_response": turn.answer,
                "timestamp": int(time.time()),
                "tool_calls_count": turn.tool_calls_count,
            }
        )

    async def stream(self, request: Request) -> Response:
        """Start a turn and stream the answer's text alone, in the older token shape."""
        session_id = request.path_params["session_id"]
        message = await self._reader.read(request)
        started = await self._turns.start(
            session_id, message.text, message.message_id, "provider-streaming"
        )

        def tokens(tail: JournalTail) -> AsyncIterator[bytes]:
            return self._tokens(tail, session_id, started.turn.turn_id)

        return await follow(self._turns, started.turn.turn_id, request, tokens)

    async def _tokens(
        self, tail: JournalTail, session_id: str, turn_id: str
    ) -> AsyncIterator[bytes]:
        splitter = sse.FrameSplitter()
        async for chunk in tail.chunks():
            if chunk == sse.HEARTBEAT:
                yield chunk
                continue
            for frame in splitter.feed(chunk):
                token = _token(frame)
                if token is None:
                    continue
                if token["type"] == "complete":
                    token["accumulated"] = (await self._turns.get(turn_id)).answer
                yield sse.encode({**token, "timestamp": int(time.time()), "session_id": session_id})


def _failed_start(error: RequestError, session_id: str) -> Response:
    """Answer as the older contract does: some failures are one event in a 200."""
    match error.code:
        case "session_not_found":
            content = {"error": "Session not found", "message": f"Session {session_id} not found"}
        case "agent_unavailable":
            content = {
                "message": "Failed to start agent processing",
                "error": error.message,
                "session_id": session_id,
            }
        case _:
            return refusal(error, session_id=session_id)
    event = sse.encode({"type": "error", "content": {**content, "code": error.code}})
    return Response(event, media_type=sse.MEDIA_TYPE)


def _token(frame: bytes) -> dict[str, Any] | None:
    """Return the token event that one of a turn's frames stands for, None for most."""
    parsed = sse.parse(frame)
    if parsed is None:
        return None
    event = json.loads(parsed.data)
    content = event["content"]
    match event["type"]:
        case "message":
            return {"type": "token", "content": content["content"], "accumulated": None}
        case "error":
            return {"type": "error", "content": content["error"], "accumulated": None}
        case "complete":
            return {"type": "complete", "content": "", "accumulated": None}
        case _:
            return None


# Sessions: the older contract's routes, and cancelling what runs in one.

_PAGE = 20
_NOT_FOUND = {"session_id": "not_found", "created_at": "", "updated_at": "", "message_count": 0}


class SessionRoutes:
    """Handlers for `/api/v1/sessions`."""

    def __init__(self, sessions: SessionService, turns: TurnEngine) -> None:
        self._sessions = sessions
        self._turns = turns

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/sessions/{session_id}"
        return [
            Route("/api/v1/sessions", self.create, methods=["POST"]),
            Route("/api/v1/sessions", self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/messages", self.messages, methods=["GET"]),
            Route(f"{one}/export", self.export, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, _request: Request) -> Response:
        """Make a session."""
        session = await self._sessions.create()
        return JSONResponse(session_object(session), status_code=201)

    async def list(self, _request: Request) -> Response:
        """List all sessions, newest first."""
        sessions = [session_object(session) for session in await self._sessions.all()]
        return JSONResponse({"sessions": sessions, "total": len(sessions)})

    async def get(self, request: Request) -> Response:
        """Show one session."""
        session = await self._find(request)
        if session is None:
            return JSONResponse(_NOT_FOUND, status_code=404)
        return JSONResponse(session_object(session))

    async def delete(self, request: Request) -> Response:
        """End a session for good."""
        try:
            await self._sessions.delete(request.path_params["session_id"])
        except RequestError:
            return Response(status_code=404)
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        """Ask the session's running turn to end: 202, or 200 when none runs."""
        session_id = request.path_params["session_id"]
        cancelled = await self._sessions.cancel(session_id)
        body = {"session_id": session_id, "cancelled": cancelled}
        return JSONResponse(body, status_code=202 if cancelled else 200)

    async def messages(self, request: Request) -> Response:
        """Show what was said, oldest first."""
        session = await self._find(request)
        if session is None:
            session_id = request.path_params["session_id"]
            empty = {"session_id": session_id, "messages": [], "total_count": 0}
            return JSONResponse(empty, status_code=404)
        return StreamingResponse(self._messages_json(session), media_type="application/json")

    async def export(self, request: Request) -> Response:
        """Return the session as Markdown."""
        session = await self._sessions.get(request.path_params["session_id"])
        return StreamingResponse(self._markdown(session), media_type="text/plain; charset=utf-8")

    async def _find(self, request: Request) -> SessionRecord | None:
        try:
            return await self._sessions.get(request.path_params["session_id"])
        except RequestError:
            return None

    async def _all_messages(self, session: SessionRecord) -> AsyncIterator[dict[str, object]]:
        # Page by page: a long session is never held whole.
        offset = index = 0
        while page := await self._turns.page(session.session_id, offset, _PAGE):
            offset += len(page)
            for turn in page:
                for message in messages_of(turn):
                    yield {**message, "message_index": index}
                    index += 1

    async def _messages_json(self, session: SessionRecord) -> AsyncIterator[str]:
        yield f'{{"session_id":{json.dumps(session.session_id)},"messages":['
        count = 0
        async for message in self._all_messages(session):
            yield ("," if count else "") + json.dumps(message, ensure_ascii=False)
            count += 1
        yield f'],"total_count":{count}}}'

    async def _markdown(self, session: SessionRecord) -> AsyncIterator[str]:
        yield f"# Session Export: {session.session_id}\n\n"
        yield f"Created: {rfc3339(session.created_at)}\n\n"
        async for message in self._all_messages(session):
            number = int(str(message["message_index"])) + 1
            yield f"## Message {number} - {message['role']}\n\n{message['content']}\n\n"


# Extensions, as the older contract has them.

_BODY = 256 * 1024


class ExtensionRoutes:
    """Handlers for `/api/v1/extensions`."""

    def __init__(self, extensions: ExtensionService) -> None:
        self._extensions = extensions

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/extensions/{name}"
        return [
            Route("/api/v1/extensions", self.list, methods=["GET"]),
            Route("/api/v1/extensions", self.add, methods=["POST"]),
            Route(f"{one}/toggle", self.toggle, methods=["PUT"]),
            Route(one, self.remove, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        """List all extensions."""
        extensions = [_extension(each) for each in await self._extensions.all()]
        return JSONResponse({"extensions": extensions, "total_count": len(extensions)})

    async def add(self, request: Request) -> Response:
        """Add an extension."""
        body = await read_object(request, _BODY)
        await self._extensions.add(extension_definition(body))
        words = "Extension created successfully"
        return JSONResponse(
            {"message": words, "name": body["name"], "enabled": True}, status_code=201
        )

    async def toggle(self, request: Request) -> Response:
        """Switch an extension on or off."""
        enabled = (await read_object(request, _BODY)).get("enabled")
        if not isinstance(enabled, bool):
            raise invalid("enabled must be true or false.")
        extension = await self._extensions.enable(request.path_params["name"], enabled=enabled)
        words = "Extension toggled successfully"
        return JSONResponse({"message": words, "name": extension.name, "enabled": enabled})

    async def remove(self, request: Request) -> Response:
        """Remove an extension that is switched off."""
        await self._extensions.remove(request.path_params["name"])
        return Response(status_code=204)


def _extension(extension: Extension) -> dict[str, Any]:
    return {
        "name": extension.name,
        "display_name": extension.display_name,
        "type": extension.kind,
        "extension_type": extension.kind,  # the older page reads this name
        "enabled": extension.enabled,
        "timeout": extension.timeout,
        "cmd": extension.command,
        "args": extension.arguments,
        "uri": extension.uri,
        "bundled": None,
        "description": extension.description,
        "env_keys": extension.env_keys,
    }


# Settings, as the older contract has them.

_SETTINGS_BODY = 64 * 1024


class SettingRoutes:
    """Handlers for `/api/v1/settings`."""

    def __init__(self, settings: SettingsService) -> None:
        self._settings = settings

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/settings/{key}"
        return [
            Route("/api/v1/settings", self.list, methods=["GET"]),
            Route("/api/v1/settings", self.change_many, methods=["PUT"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.change, methods=["PUT"]),
            Route(one, self.reset, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        """List all settings."""
        settings = [_setting(state) for state in await self._settings.all()]
        return JSONResponse({"settings": settings, "total_count": len(settings)})

    async def get(self, request: Request) -> Response:
        """Show one setting."""
        return JSONResponse(_setting(await self._settings.get(request.path_params["key"])))

    async def change(self, request: Request) -> Response:
        """Give one setting a value."""
        body = await read_object(request, _SETTINGS_BODY)
        if "value" not in body:
            raise invalid("The body must have a value.")
        state = await self._settings.change(request.path_params["key"], body["value"])
        changed = {"message": "Setting updated successfully", **_changed(state)}
        return JSONResponse(changed)

    async def change_many(self, request: Request) -> Response:
        """Give several settings values; each one succeeds or fails by itself."""
        values = (await read_object(request, _SETTINGS_BODY)).get("settings")
        if not isinstance(values, dict):
            raise invalid("settings must be an object of keys and values.")
        results = [await self._result(key, value) for key, value in values.items()]
        good = [result for result in results if result["success"]]
        words = f"Bulk update completed: {len(good)}/{len(results)} settings updated"
        return JSONResponse(
            {
                "message": words,
                "success_count": len(good),
                "total_count": len(results),
                "restart_required": any(result["restart_required"] for result in good),
                "results": results,
            }
        )

    async def reset(self, request: Request) -> Response:
        """Give one setting its default again."""
        state = await self._settings.reset(request.path_params["key"])
        return JSONResponse(
            {
                "message": "Setting reset to default successfully",
                "key": state.setting.key,
                "default_value": state.setting.default,
            }
        )

    async def _result(self, key: str, value: object) -> dict[str, Any]:
        try:
            state = await self._settings.change(key, value)
        except RequestError as error:
            return {"key": key, "success": False, "error": error.message}
        return {"success": True, **_changed(state)}


def _changed(state: SettingState) -> dict[str, Any]:
    return {
        "key": state.setting.key,
        "value": state.value,
        "restart_required": state.setting.restart_required,
    }


def _setting(state: SettingState) -> dict[str, Any]:
    setting = state.setting
    return {
        "key": setting.key,
        "value": state.value,
        "default_value": setting.default,
        "description": setting.description,
        "value_type": "number" if setting.number else "string",
        "validation": setting.validation,
        "env_override": state.env_override,
        "restart_required": setting.restart_required,
    }
