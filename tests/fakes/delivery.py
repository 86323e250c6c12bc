"""Push services and webhooks in memory: what they are told is kept, answered as tests say."""

import asyncio
import json
from collections import deque
from datetime import datetime
from typing import Any

from greylag.domain.errors import InvalidRequestError
from greylag.ports import Delivered, DeliveryResult, PushAddress, PushMessage, WebhookAddress

DONE = Delivered(DeliveryResult.DONE, "delivered")


class MemoryDelivery:
    """Implements ``greylag.ports.Delivery``; ``answers`` are given first, then all is well."""

    def __init__(self) -> None:
        self.pushed: list[tuple[PushAddress, PushMessage]] = []
        self.posted: list[tuple[WebhookAddress, str, dict[str, Any]]] = []
        self.answers: deque[Delivered] = deque()
        self.keys = 0
        self.news = asyncio.Event()

    def new_key(self) -> str:
        self.keys += 1
        return f"key {self.keys}"

    def public_key(self, key: str) -> str:
        return f"public {key}"

    def check(self, address: PushAddress | WebhookAddress) -> str:
        url = address.url if isinstance(address, WebhookAddress) else address.endpoint
        scheme, _, rest = url.partition("://")
        if scheme != "https":
            raise InvalidRequestError("The address must be https.")
        return rest.partition("/")[0]

    async def push(self, to: PushAddress, key: str, message: PushMessage) -> Delivered:
        del key
        self.pushed.append((to, message))
        self.news.set()
        return self.answers.popleft() if self.answers else DONE

    async def post(
        self, to: WebhookAddress, message_id: str, at: datetime, body: bytes
    ) -> Delivered:
        del at
        self.posted.append((to, message_id, json.loads(body)))
        self.news.set()
        return self.answers.popleft() if self.answers else DONE

    async def close(self) -> None:
        """Nothing is held."""
