"""Tells a project's own servers that a batch has ended: Standard-Webhooks messages, at least once, from Postgres."""

from jobs.webhooks.endpoints import EVENTS, Webhook, add, find, remove
from jobs.webhooks.outbox import announce
from jobs.webhooks.sender import Sender
from jobs.webhooks.signing import sign

__all__ = ["EVENTS", "Sender", "Webhook", "add", "announce", "find", "remove", "sign"]
