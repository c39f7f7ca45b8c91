"""A server's certificate, and whose clients' it accepts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from edge_sdk.errors import ConfigError

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
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{self.certificate}: no PEM certificate with its key ({getattr(error, 'strerror', None) or error})"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"{self.client_ca}: no PEM certificates ({getattr(error, 'strerror', None) or error})"
                ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; decrypt it, or keep it where only the server reads")
