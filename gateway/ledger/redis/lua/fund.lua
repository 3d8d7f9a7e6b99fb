-- Moves the limit of an account, and makes the account where there is none (gateway/ledger/contract.py has the rules).
--
-- KEYS   1 meta  2 the account  3 acts  4 acts in order  5 accounts by end  6 accounts by run  7 shared accounts' scopes by end
-- ARGV   1 epoch  2 sequence  3 the act's id  4 its text  5 by how much  6 to how much, or ''  7 what is confirmed as committed, or ''
--        8 '1': only where the limit covers what is held and spent  9 the account's key  10 the end of its window  11 the end of the day of
--        a scope that is shared, or ''
-- Reply  {DONE, sequence, word, before (nil: there was none), after}, both {limit, committed, reserved, unconfirmed, carried, adjusted}
--        word: contract.Funding
local account = account_at(KEYS[2])
local function told()
  return {account.l or false, account.c, account.r, account.u, account.f, account.j}
end
local before = account.e and told() or false
local function done(word)
  return {DONE, sequence, word, before, told()}
end

if call('HEXISTS', KEYS[3], ARGV[3]) == 1 then
  return done('replayed')
end
local spent = tonumber(ARGV[7])
local limit = tonumber(ARGV[6]) or (account.l or 0) + ARGV[5]
local committed = spent and account.u + spent or account.c
if limit < 0 then
  return done('too_little')
elseif limit >= MOST or (spent and committed + account.r >= MOST) then
  return done('too_much')
elseif ARGV[8] == '1' and limit < committed + account.r then
  return done('too_little')
end
if not account.l or limit - committed > account.l - account.c then
  raises = raises + 1
end
if spent then
  account.j, account.c, account.a = account.j + committed - account.c, committed, 0
end
account.l = limit
advance()
if not account.e then
  list(account, {ARGV[9], tonumber(ARGV[10])}, 5, ARGV[11])
end
store(account)
act(KEYS[3], KEYS[4], ARGV[3], ARGV[4])
return done('done')
