-- Ends a hold, once: commit, release, expire; an operator's settle is one of the first two. Also tells how a hold stands.
--
-- KEYS   1 meta  2 the call  3 leases  4 open  5 ended  6 tombstones  7 days  8 the spend of the day of its reserve
--        9 its run's recent holds  10 acts  11 acts in order; then its run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 the state to come to; 0: only look  5 usd  6 tokens  7 calls: what to charge, each '' for what
--        is held  8 closing, kept as it is  9 how many runs in KEYS  10 an operator's act: its id, or ''  11 its text
-- Reply  {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts {line, threshold, limit, committed}}
--        {UNKNOWN, sequence}  {AGAIN, sequence}: it has accounts that did not come in KEYS
local BEFORE_RUNS = 11
local tail, target, run_count = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[9])

local found = call('HMGET', KEYS[2], 's', 'l', 'h', 't', 'x', 'n', 'g', 'f', 'a', 'z')
local state, group = tonumber(found[1]), found[7]
if not state then
  if target ~= RELEASED or ARGV[10] ~= '' then
    return {UNKNOWN, sequence}
  end
  advance()
  call('HSET', KEYS[2], 's', RELEASED, 'x', '0 0 0', 'e', ARGV[8], 'z', now)
  call('ZADD', KEYS[6], now, tail)
  return {DONE, sequence, RELEASED, 1, 0, 0, 0, {}, {}}
end
if not group then -- a tombstone
  return {DONE, sequence, state, 0, 0, 0, 0, {}, {}}
end

local lines = cjson.decode(found[6])
local first_account = BEFORE_RUNS + run_count
if #KEYS < first_account + accounts_of(lines) then
  return {AGAIN, sequence}
end
local run = call('HMGET', KEYS[BEFORE_RUNS + 1], 'c', 'r', 'u', 'k', 'h', 'l', 'x')
run.l, run.x = tonumber(run[6]), run[7]
local above = {}
if found[9] then
  local place = BEFORE_RUNS + 1
  for ancestor in string.gmatch(found[9], '[^/]+') do
    place = place + 1
    local each = call('HMGET', KEYS[place], 'l', 'x')
    above[ancestor] = {l = tonumber(each[1]), x = each[2]}
  end
end
meet(lines, first_account, run, above)

local usd, tokens, calls = 0, 0, 0
if found[5] then
  usd, tokens, calls = three(found[5])
end
local last = target == EXPIRED and LIVE or EXPIRED -- of the states that can still come to `target`
if target == 0 or state > last or (target == EXPIRED and tonumber(found[2]) > now) then
  return {DONE, sequence, state, 0, usd, tokens, calls, balances(lines), {}}
end

local before = {usd, tokens, calls} -- charged provisionally, of an expired one: in its accounts what was held there
local held = six(found[3])
local charged = {tonumber(ARGV[5]) or held[1], tonumber(ARGV[6]) or held[2], tonumber(ARGV[7]) or held[3]}
for place = 4, 6 do
  charged[place] = target == EXPIRED and held[place] or charged[place - 3]
end
local alerts = {}
for at, line in ipairs(lines) do
  if not line[TWIN] then
    local account, unit = line.account, line[UNIT]
    if state == LIVE then
      move(account, -held[unit], charged[unit], target == EXPIRED and charged[unit] or 0)
    else
      local index = line[BUCKET] and math.floor(tonumber(found[10]) / line[BUCKET])
      if not index or index >= account.o then
        move(account, 0, -held[unit], -held[unit], index)
      end
      move(account, 0, charged[unit], 0)
    end
    if line[ALERTS] then
      fire(alerts, at, line)
    end
  end
end

advance()
for _, line in ipairs(lines) do
  if not line[TWIN] then
    local account = line.account
    if account.at or target == EXPIRED or state == EXPIRED or #alerts > 0 then
      store(account)
    else
      call('HSET', account.key, 'c', account.c, 'r', account.r)
    end
  end
end
local fields
if state == LIVE then
  fields = {'r', run[2] - held[1], 'c', (run[1] or 0) + charged[1]}
  if target == EXPIRED then
    fields[5], fields[6] = 'u', (run[3] or 0) + charged[1]
  end
  call('ZREM', KEYS[3], tail)
else
  fields = {'c', run[1] - before[1] + charged[1], 'u', run[3] - before[1]}
end
if target ~= EXPIRED then
  fields[#fields + 1], fields[#fields + 2] = 'h', run[5] - 1
  call('ZREM', KEYS[4], tail)
end
if target == RELEASED then
  fields[#fields + 1], fields[#fields + 2] = 'k', run[4] - 1
  call('LREM', KEYS[9], 1, tail .. ' ' .. (found[8] or ''))
end
call('HSET', KEYS[BEFORE_RUNS + 1], unpack(fields))
call('HSET', KEYS[2], 's', target, 'x', of_three(charged[1], charged[2], charged[3]), 'e', ARGV[8], 'z', now)
call('ZADD', KEYS[5], now, tail)
add_spend(
  KEYS[8], KEYS[7], math.floor(tonumber(found[4]) / 86400000), group,
  charged[1] - before[1], charged[2] - before[2], charged[3] - before[3]
)
if ARGV[10] ~= '' then
  act(KEYS[10], KEYS[11], ARGV[10], ARGV[11])
end
return {DONE, sequence, target, 1, charged[1], charged[2], charged[3], balances(lines), alerts}
