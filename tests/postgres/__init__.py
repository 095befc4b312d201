"""PostgreSQL for tests and for the demo: five majors fetched into a cache (`provision`), servers started and crashed
(`server`).

What comes in: package registries and Debian. What goes out: installations (`Installation`) and running servers.
Nothing here is product code: the page server finds installations through its own settings
(`pageserver.postgres.installation`).
"""
