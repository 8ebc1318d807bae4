"""A real Postgres and a real Valkey on this machine, for whoever has none: nothing to install or set up.

They come from two wheels, listen on unix sockets in a private folder and keep their files in the data folder.
`EmbeddedServers` starts or adopts them; knows nothing of what they are used for.
"""

from gristmill.embedded.errors import EmbeddedError
from gristmill.embedded.servers import Addresses, EmbeddedServers

__all__ = ["Addresses", "EmbeddedError", "EmbeddedServers"]
