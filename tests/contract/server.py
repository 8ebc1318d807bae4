"""The API in a process of its own: `python -m tests.contract.server SOCKET_FD`, set up by the environment."""

import os
import socket
import sys

import uvicorn

from jobs import database
from jobs.api.app import create_app
from jobs.api.connections import Connection
from jobs.hints import Hints
from jobs.settings import Settings


def main() -> None:
    settings = Settings.read(os.environ)
    assert settings.database_url
    assert settings.broker_url
    app = create_app(database.connect(settings.database_url), Hints(settings.broker_url), settings)
    listening = socket.socket(fileno=int(sys.argv[1]))
    uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, lifespan="off")).run(sockets=[listening])


if __name__ == "__main__":
    main()
