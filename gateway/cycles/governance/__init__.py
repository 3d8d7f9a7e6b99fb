"""The admin plane of Cycles, as far as operators need it: tenants, keys, budgets and their funding, policies, what was done and how things
stand. What is made here stands in the ledger as documents (`gateway.registry`), amounts in accounts; `docs/cycles-admin.md` says what is
served and where it differs."""
