"""What goes wrong between us and a store: wrong credentials, nobody there, errors, resets, half and damaged bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pageserver.config import InvalidSettingError, RemoteStorage
from pageserver.config.load import parse_settings
from pageserver.remote import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from pageserver.remote.open_store import open_backend
from pageserver.remote.storage import ObjectChecksumError
from tests.page_server import PageServerProcess
from tests.ports import free_port
from tests.stores.conftest import Bucket, HastyClock
from tests.stores.fault_proxy import Fault, FaultProxy

CLOUDS = ("s3", "azure", "gcs")


@pytest.fixture(params=CLOUDS)
def bucket(request: pytest.FixtureRequest, make_bucket: Callable[[str], Bucket]) -> Bucket:
    """Return an empty bucket of each kind that is reached over a network."""
    return make_bucket(request.param)


@pytest.fixture
def proxied(bucket: Bucket) -> Iterator[tuple[Bucket, FaultProxy, str]]:
    """Return a bucket, a proxy before it, and the endpoint that leads through the proxy."""
    assert bucket.service is not None
    url = urlsplit(bucket.service.endpoint)
    assert url.port is not None
    with FaultProxy(url.port) as proxy:
        yield bucket, proxy, proxy.endpoint(url.path)


async def test_wrong_credentials_are_a_refusal_and_never_an_absence(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Goal: every operation says so. versitygw answers 404 to an unknown access key, which must not pass for "there is
    no index".
    """
    await bucket.open().put("a/b", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("AZURE_STORAGE_ACCESS_KEY", "d3Jvbmcga2V5")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "wrong")
    clock = HastyClock()
    store = bucket.open(clock=clock)
    (tmp_path / "layer").write_bytes(b"x")
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: store.get("a/b"),
        "head": lambda: store.head("a/b"),
        "put": lambda: store.put("a/c", b""),
        "create": lambda: store.put_if_absent("a/c", b""),
        "upload": lambda: store.upload("a/c", tmp_path / "layer"),
        "download": lambda: store.download("a/b", tmp_path / "x"),
        "copy": lambda: store.copy("a/b", "a/d"),
        "delete": lambda: store.delete(["a/b", "a/c"]),
        "directories": lambda: store.list_directories("a/"),
        "list": lambda: anext(aiter(store.list_objects("a/"))),
    }
    for name, operation in operations.items():
        with pytest.raises(StoreRefusedError, match="check bucket, endpoint, region and credentials") as caught:
            await operation()
        assert bucket.name in str(caught.value), name
        assert "Debug" not in str(caught.value)
    assert clock.pauses == [], "a refusal is not repeated"


async def test_a_missing_bucket_is_a_refusal_and_never_an_absence(bucket: Bucket) -> None:
    assert bucket.service is not None
    bucket.name = "there-is-no-such-bucket"
    store = bucket.open()
    for operation in (
        lambda: store.get("a/b"),
        lambda: store.head("a/b"),
        lambda: store.put("a/b", b""),
        lambda: store.delete(["a/b"]),
        lambda: store.list_directories("a/"),
        lambda: anext(aiter(store.list_objects("a/"))),
    ):
        with pytest.raises(StoreRefusedError, match="there-is-no-such-bucket"):
            await operation()


async def test_nobody_there_is_tried_ten_times_with_pauses(bucket: Bucket) -> None:
    """The pauses of remote-storage.md 9.6; the text names address and cause."""
    assert bucket.service is not None
    port = free_port()
    clock = HastyClock()
    store = bucket.open(endpoint=f"http://127.0.0.1:{port}{urlsplit(bucket.service.endpoint).path}", clock=clock)
    with pytest.raises(StoreUnavailableError, match="Connection refused") as caught:
        await store.get("a/b")
    assert str(port) in str(caught.value) and bucket.name in str(caught.value)
    assert [round(pause, 3) for pause in clock.pauses] == [
        0,
        1.1,
        1.21,
        1.331,
        1.464,
        1.611,
        1.772,
        1.949,
        2.144,
        2.358,
    ]


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.ERROR_AFTER, Fault.RESET_BEFORE, Fault.RESET_AFTER])
async def test_every_operation_survives_two_failures(
    proxied: tuple[Bucket, FaultProxy, str], fault: Fault, tmp_path: Path
) -> None:
    bucket, proxy, endpoint = proxied
    clock = HastyClock()
    store = bucket.open(endpoint=endpoint, clock=clock)
    (tmp_path / "layer").write_bytes(b"layer")
    directory = bucket.open()
    await directory.put("a/a", b"1")

    async def broken(operation: Callable[[], Awaitable[object]]) -> None:
        clock.pauses.clear()
        proxy.fail(fault, times=2)
        await operation()
        assert [round(pause, 1) for pause in clock.pauses] in ([0, 1.1], [0]), "it failed once or twice"

    await broken(lambda: store.put("a/b", b"content"))
    await broken(lambda: store.upload("a/layer", tmp_path / "layer"))
    await broken(lambda: store.get("a/b"))
    await broken(lambda: store.head("a/b"))
    await broken(lambda: store.download("a/layer", tmp_path / "copy"))
    await broken(lambda: store.copy("a/layer", "a/layer2"))
    await broken(lambda: store.list_directories("a/"))
    await broken(lambda: anext(aiter(store.list_objects("a/"))))
    await broken(lambda: store.delete(["a/b", "a/a"]))
    proxy.choose = lambda request: Fault.NONE
    assert (tmp_path / "copy").read_bytes() == b"layer"
    assert [item.key async for item in directory.list_objects("a/")] == ["a/layer", "a/layer2"]


async def test_an_uncertain_create_is_read_back(proxied: tuple[Bucket, FaultProxy, str]) -> None:
    """Goal: after a reset, the create is ours exactly if the content is ours (standalone.md 1)."""
    bucket, proxy, endpoint = proxied
    store = bucket.open(endpoint=endpoint)
    for number, fault in enumerate((Fault.RESET_AFTER, Fault.ERROR_AFTER, Fault.RESET_BEFORE, Fault.ERROR_BEFORE)):
        proxy.fail(fault, method="PUT")
        await store.put_if_absent(f"g/{number}", b"mine")
        assert await store.get(f"g/{number}") == b"mine"
        proxy.fail(fault, method="PUT")
        with pytest.raises(ObjectExistsError):
            await store.put_if_absent(f"g/{number}", b"another's")
        assert await store.get(f"g/{number}") == b"mine"
    # Neither the put nor any read back is answered: nobody can know.
    proxy.choose = lambda request: Fault.RESET_AFTER
    with pytest.raises(UnknownOutcomeError):
        await store.put_if_absent("g/unknown", b"mine")
    proxy.choose = lambda request: Fault.NONE
    assert await store.get("g/unknown") == b"mine", "it did take effect"


async def test_a_conflict_without_an_object_is_tried_again(make_bucket: Callable[[str], Bucket]) -> None:
    """S3 answers 409 to one of two creates at once, and then there may be no object at all."""
    bucket = make_bucket("s3")
    assert bucket.service is not None
    with FaultProxy(urlsplit(bucket.service.endpoint).port or 0) as proxy:
        store = bucket.open(endpoint=proxy.endpoint())
        proxy.fail(Fault.CONFLICT_BEFORE, times=3, method="PUT")
        await store.put_if_absent("g/1", b"mine")
        assert await store.get("g/1") == b"mine"
        proxy.fail(Fault.CONFLICT_BEFORE, times=3, method="PUT")
        with pytest.raises(ObjectExistsError):
            await store.put_if_absent("g/1", b"mine")


async def test_half_a_body_is_never_taken_for_the_whole(
    proxied: tuple[Bucket, FaultProxy, str], tmp_path: Path
) -> None:
    bucket, proxy, endpoint = proxied
    content = bytes(range(256)) * 5000
    (tmp_path / "layer").write_bytes(content)
    await bucket.open().upload("t/layer", tmp_path / "layer")
    once = bucket.open_once(endpoint=endpoint)
    proxy.fail(Fault.TRUNCATED, times=2)
    with pytest.raises(StoreUnavailableError):
        await once.get("t/layer")
    with pytest.raises(StoreUnavailableError):
        await once.download("t/layer", tmp_path / "copy")
    assert not (tmp_path / "copy").exists(), "nothing is left of a download that broke off"
    proxy.fail(Fault.TRUNCATED, times=2)
    assert await bucket.open(endpoint=endpoint).download("t/layer", tmp_path / "copy") == len(content)
    assert (tmp_path / "copy").read_bytes() == content


async def test_a_damaged_layer_is_found_when_it_is_downloaded(
    proxied: tuple[Bucket, FaultProxy, str], tmp_path: Path
) -> None:
    bucket, proxy, endpoint = proxied
    (tmp_path / "layer").write_bytes(b"x" * 100_000)
    store = bucket.open(endpoint=endpoint)
    await store.upload("t/layer", tmp_path / "layer")
    proxy.fail(Fault.FLIPPED, method="GET")
    with pytest.raises(ObjectChecksumError, match="t/layer is damaged"):
        await store.download("t/layer", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_a_store_that_does_not_answer_is_given_up(proxied: tuple[Bucket, FaultProxy, str]) -> None:
    bucket, proxy, endpoint = proxied
    store = bucket.open_once(endpoint=endpoint, timeout="300ms")
    proxy.fail(Fault.HANGS, times=2)
    with pytest.raises(StoreUnavailableError, match="timeout"):
        await store.get("a/b")
    with pytest.raises(UnknownOutcomeError, match="timeout"):
        await store.put("a/b", b"")
    with pytest.raises(ObjectNotFoundError):
        await store.get("a/c")


async def test_cancelling_ends_a_wait_at_once_and_gives_the_permit_back(
    proxied: tuple[Bucket, FaultProxy, str], tmp_path: Path
) -> None:
    bucket, proxy, endpoint = proxied
    store = bucket.open(endpoint=endpoint, concurrency_limit=1)
    await store.put("a/b", b"x")
    proxy.fail(Fault.HANGS)
    hanging = asyncio.ensure_future(store.download("a/b", tmp_path / "copy"))
    waiting = asyncio.ensure_future(store.get("a/b"))
    while not any(request.method == "GET" for request in proxy.requests):  # noqa: ASYNC110 — the proxy is a thread
        await asyncio.sleep(0.01)
    assert not waiting.done(), "there is one permit"
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await asyncio.wait_for(waiting, 10) == b"x"
    assert not (tmp_path / "copy").exists()


async def test_listings_go_on_where_they_broke_off(proxied: tuple[Bucket, FaultProxy, str]) -> None:
    """Goal: no key twice, none missing, with a failure between any two pages."""
    bucket, proxy, endpoint = proxied
    direct = bucket.open()
    keys = [f"l/{i:02}" for i in range(10)]
    await asyncio.gather(*(direct.put(key, b"") for key in keys))
    proxy.fail(Fault.RESET_AFTER, times=3)
    assert [item.key async for item in bucket.open(endpoint=endpoint).list_objects("l/")] == keys


async def test_encryption_and_storage_class_are_asked_for(make_bucket: Callable[[str], Bucket], tmp_path: Path) -> None:
    """SSE-S3 and SSE-KMS: the headers are sent with every object, also with the parts' first request and copies."""
    bucket = make_bucket("s3")
    assert bucket.service is not None
    (tmp_path / "large").write_bytes(bytes(17 << 20))
    with FaultProxy(urlsplit(bucket.service.endpoint).port or 0) as proxy:
        proxy.choose = lambda request: Fault.ERROR_BEFORE
        kms = {"server_side_encryption": "aws:kms", "sse_kms_key_id": "arn:key", "sse_bucket_key_enabled": True}
        cases: tuple[dict[str, object], ...] = ({"server_side_encryption": "AES256"}, kms)
        for more in cases:
            proxy.requests.clear()
            store = bucket.open_once(endpoint=proxy.endpoint(), upload_storage_class="STANDARD_IA", **more)
            with pytest.raises(UnknownOutcomeError):
                await store.put("a", b"")
            with pytest.raises(UnknownOutcomeError):
                await store.put_if_absent("a", b"")
            with pytest.raises(UnknownOutcomeError):
                await store.upload("a", tmp_path / "large")
            assert len(proxy.requests) == 3
            for request in proxy.requests:
                assert request.headers["x-amz-server-side-encryption"] == more["server_side_encryption"]
                assert request.headers.get("x-amz-server-side-encryption-aws-kms-key-id") == more.get("sse_kms_key_id")
                assert request.headers["x-amz-storage-class"] == "STANDARD_IA"


async def test_requests_are_bounded_to_the_limit(proxied: tuple[Bucket, FaultProxy, str]) -> None:
    """Goal: with a limit of 3, never more than 3 reads are under way."""
    bucket, proxy, endpoint = proxied
    await bucket.open().put("a/b", b"x")
    proxy.choose = lambda request: Fault.HANGS
    store = bucket.open_once(endpoint=endpoint, concurrency_limit=3, timeout="1s")
    outcomes = await asyncio.wait_for(asyncio.gather(*(store.get("a/b") for _ in range(6)), return_exceptions=True), 30)
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
    assert len(proxy.requests) == 6, "the time spent waiting for a permit does not count"


def test_aws_profiles_are_read(
    make_bucket: Callable[[str], Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: AWS_PROFILE with a shared credentials file, which obstore alone does not read."""
    bucket = make_bucket("s3")
    keys = dict(bucket.service.ENVIRONMENT) if bucket.service else {}
    for variable in keys:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    async def put() -> None:
        await bucket.open().put("a/b", b"x")

    with pytest.raises(StoreRefusedError, match="no AWS credentials found"):
        asyncio.run(put())
    (tmp_path / "credentials").write_text(
        "[backup]\n"
        f"aws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "backup")
    asyncio.run(put())
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefusedError, match="nobody"):
        asyncio.run(put())


@pytest.mark.parametrize(
    ("kind", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("azure", "AZURE_STORAGE_ENDPOINT"), ("gcs", "GOOGLE_BASE_URL")]
)
async def test_the_endpoint_may_come_from_the_environment(
    make_bucket: Callable[[str], Bucket], kind: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(kind)
    assert bucket.service is not None
    monkeypatch.setenv(variable, bucket.service.endpoint)
    settings = bucket.settings().model_copy(update={"endpoint": None})
    await open_backend(settings, bucket.workdir).put("a/b", b"x")
    assert await bucket.open().get("a/b") == b"x"


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://h", "http://", "127.0.0.1:9000"])
def test_an_endpoint_that_is_no_url_stops_the_start(endpoint: str) -> None:
    """obstore panics on such."""
    with pytest.raises(InvalidSettingError, match=r"remote_storage\.endpoint"):
        parse_settings({"remote_storage": {"bucket_name": "b", "bucket_region": "r", "endpoint": endpoint}})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bucket_name": "b", "bucket_region": "r", "prefix_in_bucket": ""}, "prefix_in_bucket"),
        ({"bucket_name": "b", "bucket_region": "r", "prefix_in_bucket": "/"}, "prefix_in_bucket"),
        ({"container_name": "c", "container_region": "r"}, "storage_account"),
        (
            {"container_name": "c", "container_region": "r", "storage_account": "a", "prefix_in_container": "/x"},
            "prefix_in_container",
        ),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    table: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(InvalidSettingError, match=message):
        open_backend(RemoteStorage.model_validate(table), tmp_path)


def test_a_server_with_wrong_credentials_says_so_and_ends(
    make_bucket: Callable[[str], Bucket], server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket("s3")
    assert bucket.service is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    server = PageServerProcess(
        server_dir / "pageserver",
        settings={"remote_storage": bucket.service.settings(bucket.name), "log_format": "'json'"},
    )
    with pytest.raises(AssertionError, match="refuses to put"):
        server.start()
    last = json.loads(server.log_path.read_text().splitlines()[-1])
    assert "check bucket, endpoint, region and credentials" in json.dumps(last)
