"""A server's certificate, and whose clients' it accepts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from edge_sdk.pem import load_authorities, load_identity

__all__ = ["TLS"]


class TLS(NamedTuple):
    """PEM files.

    Attributes:
        certificate: of the server, with those that lead to its authority.
        key: of it; None where the certificate's file holds it.
        client_ca: of the authority that must have signed each client's certificate; None asks for none.
    """

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None

    def check(self) -> None:
        """Load them as the server will.

        Raises:
            ConfigError: a file cannot be read, or key and certificate do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_identity(context, self.certificate, self.key)
        if self.client_ca is not None:
            load_authorities(context, self.client_ca)
