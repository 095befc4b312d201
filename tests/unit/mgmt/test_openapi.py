"""The OpenAPI document says what the server does: all routes, with schemas and examples that fit each other, and that
fit what Neon's server answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from pageserver.mgmt.openapi import build_document
from pageserver.mgmt.openapi.answers import BYTES
from pageserver.mgmt.openapi.operations import OPERATIONS
from pageserver.mgmt.openapi.schemas import component_schemas
from pageserver.mgmt.routes import built_routes
from tests.api_search.allowed import prescribed, shape
from tests.unit.mgmt.test_http import serve, vector

DOCUMENT = build_document(built_routes(), version="test")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def errors_of(schema: dict[str, Any], value: Any) -> list[str]:
    """Return what is wrong with a value, by a schema that may refer to the document's."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]


def test_every_built_route_is_described_and_no_other() -> None:
    assert sorted(OPERATIONS) == sorted(built_routes())
    assert [(method, path) for method, path, _ in operations()]
    identifiers = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(identifiers)) == len(identifiers)


def test_every_parameter_body_and_answer_has_a_schema_and_an_example_that_fits() -> None:
    checked = 0
    for method, path, operation in operations():
        described = [*operation["responses"].values(), operation.get("requestBody", {"content": {}})]
        contents = [content for part in described for content in part.get("content", {}).values()]
        for content in (*operation["parameters"], *contents):
            if content["schema"] == BYTES:
                continue
            assert "example" in content, (method, path, content)
            assert errors_of(content["schema"], content["example"]) == [], (method, path, content["example"])
            checked += 1
        assert any(status.startswith("2") for status in operation["responses"])
    assert checked > 200


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("bad_id.json", "Error"),
        ("keyspace.json", "KeySpace"),
        ("layers.json", "LayerMap"),
        ("location_config.json", "LocationConfig"),
        ("location_configs.json", "LocationConfigList"),
        ("not_found_route.json", "Error"),
        ("status.json", "Status"),
        ("tenant.json", "TenantDetails"),
        ("tenant_config.json", "TenantConfigAnswer"),
        ("timeline.json", "TimelineInfo"),
        ("unknown_tenant.json", "Error"),
        ("unknown_timeline.json", "Error"),
    ],
)
def test_what_neon_answered_fits(file: str, schema: str) -> None:
    value = vector(file)
    assert errors_of({"$ref": f"#/components/schemas/{schema}"}, value) == []
    without = {key: value[key] for key in list(value)[1:]}
    if schema not in ("Error", "KeySpace"):
        assert errors_of({"$ref": f"#/components/schemas/{schema}"}, without), "the schema asks for nothing"


def test_requests_are_described_as_they_are_read() -> None:
    """A key of a model that the document lacks, or the other way round, is an oversight."""
    schemas = component_schemas()
    assert set(schemas["LocationConfigBody"]["required"]) == {"mode", "tenant_conf"}
    assert schemas["LocationConfigBody"]["additionalProperties"] is False
    assert "repository" in schemas["TenantConfig"]["properties"]
    assert "gc_period" in schemas["TenantConfigBody"]["properties"]


def test_prescribed_server_errors_are_in_the_document() -> None:
    """What docs/http-api.md lists, clients can read from the document too."""
    known = {(method, shape(path)): operation for method, path, operation in operations()}
    for (method, path), codes in prescribed().items():
        if method == "*":
            continue
        documented = {int(status) for status in known[method, path]["responses"]}
        assert codes <= documented, (method, path)
    json.dumps(DOCUMENT)


async def test_the_server_hands_out_its_document(tmp_path: Path) -> None:
    async with serve(tmp_path) as api:
        for path in ("/openapi.json", "/swagger.yml"):
            served = (await api.client.get(path)).json()
            assert (served["openapi"], served["paths"]) == ("3.1.0", DOCUMENT["paths"])
