-- Accounts as they stand now.
--
-- KEYS   1 meta; then the accounts
-- ARGV   1 epoch  2 sequence; then, per account, the length of a rolling window's buckets or ''
-- Reply  {DONE, sequence, {committed, reserved, unconfirmed, limit, carried, adjusted, end (nil: there is no such account)} …}
local told = {}
for at = 2, #KEYS do
  local account = account_at(KEYS[at], tonumber(ARGV[at + 1]))
  told[at - 1] = {account.c, account.r, account.u, account.l or false, account.f, account.j, account.e or false}
end
return {DONE, sequence, told}
