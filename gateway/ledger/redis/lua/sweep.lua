-- Removes what needs no record, if it still needs none.
--
-- KEYS   1 meta, and then by what is to go:
-- ARGV   1 epoch  2 sequence  3 what, and then:
--        tombstone  KEYS 2 tombstones  3 the call                                          ARGV 4 tail
--        refusal    KEYS 2 refused  3 refused by time  4 the ring                          ARGV 4 tail
--        account    KEYS 2 accounts by end  3 accounts by run  4 the account               ARGV 4 run or ''  5 key  6 bucket_ms or ''
--        run        KEYS 2 accounts by end  3 accounts by run  4 runs  5 the owner's  6 the owner's active  7 the run  8 recent; then
--                   its accounts                                                           ARGV 4 run  5 last use  6 owner  7 the run as text;
--                                                                                               then a key and bucket_ms each
--        shared     KEYS 2 accounts by end  3 accounts by run  4 shared scopes by end; then its accounts   ARGV 4 its text, as above
--        spend      KEYS 2 days  3 the day's spend                                         ARGV 4 day
--        acts       KEYS 2 acts  3 acts in order      ARGV 4 how old, in ms  5 how many stay at most  6 how many may go now
--        memo       KEYS 2 memos by time  3 the memo                                       ARGV 4 its name
-- Reply  {DONE, sequence, how many things}
local what = ARGV[3]

-- Whether nothing on record counts there any more.
local function is_settled(key, bucket_ms)
  local account = account_at(key, bucket_ms)
  if account.r ~= 0 then
    return false
  end
  if not bucket_ms then
    return account.c == account.f + account.j
  end
  for _, bucket in pairs(account.buckets) do
    if bucket[1] ~= bucket[3] then
      return false
    end
  end
  return true
end

local function forget(key, run, name)
  call('DEL', key)
  call('ZREM', KEYS[2], name)
  if run ~= '' then
    call('ZREM', KEYS[3], run .. ' ' .. name)
  end
end

-- The accounts from KEYS[before + 1] and ARGV[given] on, all or none. nil: some is still of use.
local function forget_all(before, given, run)
  local names = {}
  for at = before + 1, #KEYS do
    local place = given + 2 * (at - before - 1)
    if not is_settled(KEYS[at], tonumber(ARGV[place + 1])) then
      return nil
    end
    names[at] = ARGV[place]
  end
  advance()
  for at, name in pairs(names) do
    forget(KEYS[at], run, name)
  end
  return #KEYS - before
end

local gone = 0
if what == 'tombstone' then
  local kept = call_at(KEYS[3])
  if not kept or not kept.t then
    advance()
    call('DEL', KEYS[3])
    gone = 1
  end
  call('ZREM', KEYS[2], ARGV[4])
elseif what == 'refusal' then
  advance()
  gone = call('HDEL', KEYS[2], ARGV[4])
  call('ZREM', KEYS[3], ARGV[4])
  call('LREM', KEYS[4], 0, ARGV[4])
elseif what == 'account' then
  if is_settled(KEYS[4], tonumber(ARGV[6])) then
    advance()
    forget(KEYS[4], ARGV[4], ARGV[5])
    gone = 1
  end
elseif what == 'run' then
  local run = run_at(KEYS[7])
  if run.t == tonumber(ARGV[5]) and run.o == ARGV[6] and run.h == 0 then
    local accounts_gone = forget_all(8, 8, ARGV[7])
    if accounts_gone then
      call('DEL', KEYS[7], KEYS[8])
      for at = 4, 6 do
        call('ZREM', KEYS[at], ARGV[4])
      end
      gone = accounts_gone + 1
    end
  end
elseif what == 'shared' then
  gone = forget_all(4, 5, ARGV[4])
  if gone then
    call('ZREM', KEYS[4], ARGV[4])
  end
  gone = gone or 0
elseif what == 'spend' then
  gone = call('HLEN', KEYS[3])
  advance()
  call('DEL', KEYS[3])
  call('SREM', KEYS[2], ARGV[4])
elseif what == 'acts' then
  local too_many = call('ZCARD', KEYS[3]) - ARGV[5]
  for place, id in ipairs(call('ZRANGE', KEYS[3], 0, ARGV[6] - 1)) do
    local at_ms = tonumber(string.match(call('HGET', KEYS[2], id), '^%d+'))
    if place > too_many and at_ms + ARGV[4] > now then
      break
    end
    if gone == 0 then
      advance()
    end
    call('HDEL', KEYS[2], id)
    call('ZREM', KEYS[3], id)
    gone = gone + 1
  end
elseif what == 'memo' then
  local kept = call('GET', KEYS[3])
  if not kept or read('<d', kept) <= now then
    advance()
    call('DEL', KEYS[3])
    call('ZREM', KEYS[2], ARGV[4])
    gone = 1
  end
end
return {DONE, sequence, gone}
