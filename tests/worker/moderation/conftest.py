"""The API's own fixtures, for what is asked of a filtered worker through the `openai` client."""

from tests.jobs.api.conftest import address, app, hints, key, sdk

__all__ = ["address", "app", "hints", "key", "sdk"]
