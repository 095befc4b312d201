"""`pageserver.toml`: defaults, overrides, unknown keys, errors that name the key (http-api.md 9)."""

import json
from pathlib import Path

import pytest

from pageserver.config import Duration, InvalidSettingError, TenantOverrides, init_workdir, read_config

VECTORS = Path(__file__).parents[4] / "shared" / "vectors" / "neon-pg16" / "http"


def write(workdir: Path, text: str) -> Path:
    (workdir / "identity.toml").write_text("id=1234")
    (workdir / "pageserver.toml").write_text(text)
    return workdir


def test_an_initialised_directory_gives_the_defaults(tmp_path: Path) -> None:
    init_workdir(tmp_path / "new")
    config = read_config(tmp_path / "new")
    assert config.node_id == 1
    assert config.settings.listen_pg_addr == "127.0.0.1:64000"
    assert config.settings.wait_lsn_timeout == Duration.from_seconds(300)
    assert config.settings.remote_storage is None
    assert config.ignored_items == ()


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "listen_pg_addr='127.0.0.1:1'")
    init_workdir(tmp_path)
    assert read_config(tmp_path).node_id == 1234


def test_overrides_win_and_reach_into_tables(tmp_path: Path) -> None:
    workdir = write(tmp_path, "[tenant_config]\ncheckpoint_distance = 5\n")
    config = read_config(
        workdir, ["listen_http_addr = '0.0.0.0:1'", "tenant_config.checkpoint_timeout='1s'", "pg_installations.16='/x'"]
    )
    assert config.settings.listen_http_addr == "0.0.0.0:1"
    effective = TenantOverrides().effective(config.settings.tenant_defaults())
    assert (effective.checkpoint_distance, str(effective.checkpoint_timeout)) == (5, "1s")
    assert config.settings.pg_installations == {"16": "/x"}
    assert config.ignored_items == ()


def test_the_engine_of_redo_can_be_chosen(tmp_path: Path) -> None:
    workdir = write(tmp_path, "redo = 'process-only'\n[redo_programs]\n16 = '/opt/neon/bin/postgres'\n")
    settings = read_config(workdir).settings
    assert (settings.redo, settings.redo_programs) == ("process-only", {"16": "/opt/neon/bin/postgres"})
    assert read_config(workdir, ["redo='native-first'"]).settings.redo == "native-first"
    for override in ("redo='process'", "redo_programs.13='/x'"):
        with pytest.raises(InvalidSettingError, match=override.split("=")[0].split(".")[0]):
            read_config(workdir, [override])


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", ":9898", "127.0.0.1:99999", "127.0.0.1:", "host:1x"])
@pytest.mark.parametrize("key", ["listen_http_addr", "listen_pg_addr"])
def test_an_address_that_is_none_is_refused(key: str, address: str, tmp_path: Path) -> None:
    """Lost once: `99999` was port 34463, and a missing port a traceback."""
    with pytest.raises(InvalidSettingError, match=f"{key}: .*looks like 127.0.0.1:9898"):
        read_config(write(tmp_path, ""), [f"{key}='{address}'"])


def test_another_kind_of_store_replaces_the_one_of_the_file(tmp_path: Path) -> None:
    """Goal: `-c remote_storage={…}` is the store that is used, whatever kind the file has (remote-storage.md 16: with
    a mixture of keys the directory would win). The same kind is changed key by key.
    """
    workdir = tmp_path / "ps"
    init_workdir(workdir, overrides=["remote_storage={local_path='here', timeout='1s'}"])
    store = read_config(workdir, ["remote_storage={bucket_name='b', bucket_region='r'}"]).settings.remote_storage
    assert store is not None
    assert (store.kind, store.local_path, str(store.timeout)) == ("s3", None, "2m")
    store = read_config(workdir, ["remote_storage.local_path='there'"]).settings.remote_storage
    assert store is not None
    assert (store.kind, store.local_path, str(store.timeout)) == ("local", "there", "1s")


def test_an_unquoted_text_override_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="quotes"):
        read_config(write(tmp_path, ""), ["listen_http_addr=0.0.0.0:1"])


def test_unknown_keys_are_reported_and_do_not_stop_the_start(tmp_path: Path) -> None:
    storage = "[remote_storage]\nlocal_path='/b'\nunknown=2\n"
    text = f"foo=1\n{storage}[tenant_config]\nbar=[{{a=1}}]\neviction_policy={{kind='NoEviction'}}\n"
    config = read_config(write(tmp_path, text))
    assert config.ignored_items == ("foo", "remote_storage.unknown", "tenant_config.bar.[0].a")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("page_cache_size='8'", "page_cache_size"),
        ("wait_lsn_timeout=3", "wait_lsn_timeout"),
        ("concurrent_tenant_warmup=0", "concurrent_tenant_warmup"),
        ("disk_usage_based_eviction={max_usage_pct=101}", "disk_usage_based_eviction.max_usage_pct"),
        ("log_format='xml'", "log_format"),
        ("image_compression='lz4'", "image_compression"),
        ("image_compression='zstd(128)'", "image_compression"),
        ("image_compression='zstd(-129)'", "image_compression"),
        ("page_service_pipelining={mode='pipelined',max_batch_size=99}", "max_batch_size"),
        (
            "tracing={sampling_ratio={numerator=1,denominator=0},export_config={endpoint='http://x',protocol='grpc',timeout='1s'}}",
            "denominator",
        ),
        ("[tenant_config]\ncheckpoint_distance=34359738368", "checkpoint_distance"),
        ("[tenant_config]\ngc_period='soon'", "gc_period"),
        ("[remote_storage]\nbucket='x'", "remote_storage"),
    ],
)
def test_a_bad_value_in_a_known_key_prevents_the_start(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(InvalidSettingError, match=path):
        read_config(write(tmp_path, text))


def test_a_missing_identity_prevents_the_start(tmp_path: Path) -> None:
    (tmp_path / "pageserver.toml").write_text("")
    with pytest.raises(InvalidSettingError, match="could not read identity file"):
        read_config(tmp_path)


def test_effective_config_is_what_neon_answers() -> None:
    captured = json.loads((VECTORS / "tenant_config.json").read_text())
    overrides = TenantOverrides.parse(captured["tenant_specific_overrides"])
    assert overrides.known() == captured["tenant_specific_overrides"]
    assert json.dumps(overrides.effective(TenantOverrides()).to_api()) == json.dumps(captured["effective_config"])


def test_a_patch_sets_removes_and_leaves_alone() -> None:
    overrides = TenantOverrides.parse(
        {"checkpoint_distance": 28, "gc_horizon": 100, "compaction_target_size": 1024, "new_key": 1}
    )
    patched = overrides.patched({"checkpoint_distance": 42, "gc_horizon": None})
    assert patched.known() == {"checkpoint_distance": 42, "compaction_target_size": 1024}
    assert patched.to_document()["new_key"] == 1
