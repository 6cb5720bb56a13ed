"""The campaigns: Prefect flows, the `symmbfn` command and their settings."""
