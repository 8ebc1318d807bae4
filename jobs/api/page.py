"""The page at `/`: batches in a browser. It holds no data: its script asks the API with the key that a person types."""

import secrets
from functools import cache
from pathlib import Path

from fastapi.responses import HTMLResponse

PAGE = Path(__file__).with_name("page.html")
NONCE = "{nonce}"


def get() -> HTMLResponse:
    """The page, and the rule that a browser runs nothing but what stands in it and asks nobody but us."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    return HTMLResponse(_page().replace(NONCE, nonce), headers=headers)


@cache
def _page() -> str:
    return PAGE.read_text("utf-8")
