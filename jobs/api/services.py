"""What the routes work with, handed to `create_app` and found again in each request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from jobs.api.at_once import AtOnce
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.workers import Served


@dataclass(frozen=True, slots=True)
class Services:
    engine: Engine
    hints: Hints
    settings: Settings
    served: Served
    at_once: AtOnce


async def services_of(request: Request) -> Services:
    """Async, though it awaits nothing: a plain function would cost each request a thread."""
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(services_of)]
