"""The OpenAPI document: what each route takes and answers, with examples, for people, for code generators and for tests
that search for requests the server cannot stand.

    routes (FastAPI knows path and method) + `operations` (parameters, bodies, answers) + `schemas` ──▶ document

Handlers read requests by themselves (`mgmt/requests.py`), so nothing here changes what the server does: it is a second
statement of the same facts, and tests compare the two. A route that is not described does not appear;
`tests/unit/mgmt/test_openapi.py` notices. Source of the facts: http-api.md 1 to 5.
"""

from pageserver.mgmt.openapi.document import build_document

__all__ = ["build_document"]
