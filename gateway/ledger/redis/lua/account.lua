-- What people do to an account: its limit, an adjustment, a reset.
--
-- KEYS   1 meta  2 the account  3 acts  4 acts in order
-- ARGV   1 epoch  2 sequence  3 what  4 the limit ('': the policy's again) or the amount  5 the act's id  6 its text  7 the length of a
--        rolling window's buckets, or ''
-- Reply  {DONE, sequence, word, limit, committed, reserved, unconfirmed, carried, adjusted}  {UNKNOWN, sequence}: no such account
--        word: of an adjustment, how it went (contract.Adjusting)
local what, amount, bucket_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[7])
local account = account_at(KEYS[2], bucket_ms)
if not account.e then
  return {UNKNOWN, sequence}
end

local function done(word)
  return {DONE, sequence, word, account.l or false, account.c, account.r, account.u, account.f, account.j}
end

local function changed()
  raises = raises + 1
  advance()
  store(account)
  act(KEYS[3], KEYS[4], ARGV[5], ARGV[6])
end

if what == 'set_account_limit' then
  if account.l ~= amount then
    account.l = amount
    changed()
  end
elseif what == 'adjust' then
  if call('HEXISTS', KEYS[3], ARGV[5]) == 1 then
    return done('replayed')
  elseif bucket_ms then
    return done('rolling')
  elseif account.c - account.u + amount < 0 then
    return done('below_zero')
  end
  must_count(account, amount)
  account.c, account.j = account.c + amount, account.j + amount
  changed()
elseif account.c ~= account.u or account.a ~= 0 then -- reset
  if bucket_ms then
    for _, bucket in pairs(account.buckets) do
      bucket[1], bucket[3] = bucket[2], bucket[3] + bucket[2] - bucket[1]
    end
  else
    account.j = account.j + account.u - account.c
  end
  account.c, account.a = account.u, 0
  changed()
end
return done('done')
