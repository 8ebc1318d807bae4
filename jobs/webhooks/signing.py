"""Signatures that prove a message is ours, as standardwebhooks.com specifies them. Pure."""

import base64
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
SECRET_SIZE = 32


def new_secret() -> str:
    """A secret as `client.webhooks.unwrap` takes it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_SIZE)).decode()


def sign(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 of id, time (seconds since 1970) and body."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
