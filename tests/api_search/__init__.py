"""A search for requests that the management API cannot stand: schemathesis makes them from the OpenAPI document.

    python -m tests.api_search [--examples N] [--seed N]     the long run (`make api-search`)

`world.py` starts a server with a timeline of a real PostgreSQL, `hooks.py` runs inside of schemathesis: it points
made-up ids at things that exist and judges answers of the 500s, `allowed.py` reads which of those are prescribed.
"""
