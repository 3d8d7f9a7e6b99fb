-- Accounts as they stand now.
--
-- KEYS   1 meta; then the accounts
-- ARGV   1 epoch  2 sequence; then, per account, the length of a rolling window's buckets or ''
-- Reply  {DONE, sequence, {committed, reserved, unconfirmed, limit, carried, adjusted, end (nil: there is no such account)} …}
local told = {}
for at = 2, #KEYS do
  local account = account_at(KEYS[at], tonumber(ARGV[at + 1]))
  local found = call('HMGET', KEYS[at], 'f', 'j')
  told[at - 1] = {
    account.c, account.r, account.u, account.l or false, tonumber(found[1]) or 0, tonumber(found[2]) or 0, account.e or false,
  }
end
return {DONE, sequence, told}
