"""AWS credentials by the usual chain (remote-storage.md 16): environment, `AWS_PROFILE` and shared files, roles, web
identity, containers, instance metadata.

The chain is botocore's, since `obstore` itself reads no profiles. Credentials that expire are refreshed by botocore
before they do; we hand the current ones out for a few minutes at a time, so that rotated ones are taken up.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError

from pageserver.remote.storage import StoreRefusedError

_HANDED_OUT_FOR = timedelta(minutes=5)


class AwsCredentials:
    """A credential provider for `obstore`, which calls it on its own threads.

    It must be an ordinary function: the parts of a multipart upload are sent by tasks that know no event loop, where
    a coroutine fails with "no running event loop".
    """

    def __init__(self) -> None:
        self._session = botocore.session.Session()
        self._credentials: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        """Return the current key; the first call goes through the chain. Shape: obstore's `S3Credential`. Raises
        StoreRefusedError, of which obstore keeps the text.
        """
        try:
            with self._lock:
                if self._credentials is None:
                    self._credentials = self._session.get_credentials()
            if self._credentials is None:
                raise _no_credentials("no AWS credentials found")
            current = self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise _no_credentials(f"cannot get AWS credentials: {error}") from error
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
