"""AWS credentials by the usual chain (remote-storage.md 16): environment, `AWS_PROFILE` and shared files, roles, web
identity, containers, instance metadata.

The chain is botocore's, since `obstore` itself reads no profiles. Credentials that expire are refreshed by botocore
before they do; we hand the current ones out for a few minutes at a time, so that rotated ones are taken up.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError

from pageserver.remote.storage import StoreRefusedError

_HANDED_OUT_FOR = timedelta(minutes=5)


class AwsCredentials:
    """A credential provider for `obstore`. Called by it on the event loop of the request."""

    def __init__(self) -> None:
        self._session = botocore.session.Session()
        self._credentials: Any = None

    def find(self) -> None:
        """Go through the chain once; it may ask the instance's metadata service. Raises StoreRefusedError."""
        try:
            self._credentials = self._session.get_credentials()
        except BotoCoreError as error:
            raise _no_credentials(f"cannot get AWS credentials: {error}") from error
        if self._credentials is None:
            raise _no_credentials("no AWS credentials found")

    async def __call__(self) -> Any:
        """Return the current key. Shape: obstore's `S3Credential`. Raises StoreRefusedError."""
        if self._credentials is None:
            await asyncio.to_thread(self.find)
        try:
            current = await asyncio.to_thread(self._credentials.get_frozen_credentials)
        except BotoCoreError as error:
            raise _no_credentials(f"cannot refresh AWS credentials: {error}") from error
        return {
            "access_key_id": current.access_key,
            "secret_access_key": current.secret_key,
            "token": current.token,
            "expires_at": datetime.now(UTC) + _HANDED_OUT_FOR,
        }


def _no_credentials(message: str) -> StoreRefusedError:
    return StoreRefusedError(
        message,
        operation="sign",
        key="",
        hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with the shared credentials file",
    )
