-- Ends a hold, once: commit, release, expire; an operator's settle is one of the first two. Also tells how a hold stands.
--
-- KEYS   1 meta  2 the call  3 leases  4 open  5 ended  6 tombstones  7 days  8 the spend of the day of its reserve
--        9 its run's recent holds  10 acts  11 acts in order; then its run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 the state to come to; 0: only look  5 usd  6 tokens  7 calls: what to charge, each '' for what
--        is held  8 closing, kept as it is  9 how many runs in KEYS  10 an operator's act: its id, or ''  11 its text
-- Reply  {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts {line, threshold, limit, committed}, group}
--        {UNKNOWN, sequence}  {AGAIN, sequence}: it has accounts that did not come in KEYS
local BEFORE_RUNS = 11
local tail, target, run_count = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[9])

local found = call('HMGET', KEYS[2], 's', 'l', 'h', 't', 'x', 'n', 'g', 'f', 'a', 'z')
local state, lease, group = tonumber(found[1]), tonumber(found[2]), found[7]
if not state then
  if target ~= RELEASED or ARGV[10] ~= '' then
    return {UNKNOWN, sequence}
  end
  advance()
  call('HSET', KEYS[2], 's', RELEASED, 'x', '0 0 0', 'e', ARGV[8], 'z', int(now))
  call('ZADD', KEYS[6], now, tail)
  return {DONE, sequence, RELEASED, 1, 0, 0, 0, {}, {}, ''}
end
if not found[6] then -- a tombstone
  return {DONE, sequence, state, 0, 0, 0, 0, {}, {}, ''}
end

local lines = cjson.decode(found[6])
if #KEYS < BEFORE_RUNS + run_count + accounts_of(lines) then
  return {AGAIN, sequence}
end
local function run_at(place)
  local run = call('HMGET', KEYS[BEFORE_RUNS + place], 'c', 'r', 'u', 'k', 'h', 'l', 'x')
  return {
    c = tonumber(run[1]) or 0, r = tonumber(run[2]) or 0, u = tonumber(run[3]) or 0, k = tonumber(run[4]), h = tonumber(run[5]),
    l = tonumber(run[6]), x = run[7],
  }
end
local run, above, place = run_at(1), {}, 1
for ancestor in string.gmatch(found[9], '[^/]+') do
  place = place + 1
  above[ancestor] = run_at(place)
end
meet(lines, BEFORE_RUNS + run_count, run, above)

local held, charged = {three(found[3])}, {0, 0, 0}
if found[5] then
  charged = {three(found[5])}
end
local last = target == EXPIRED and LIVE or EXPIRED -- of the states that can still come to `target`
if target == 0 or state > last or (target == EXPIRED and lease > now) then
  return {DONE, sequence, state, 0, charged[1], charged[2], charged[3], balances(lines), {}, group}
end

local before = charged -- provisionally, of an expired one
charged = {}
for unit = 1, 3 do
  charged[unit] = tonumber(ARGV[4 + unit]) or held[unit]
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
        move(account, 0, -before[unit], -before[unit], index)
      end
      move(account, 0, charged[unit], 0)
    end
    fire(alerts, at, line)
  end
end

advance()
for _, line in ipairs(lines) do
  if not line[TWIN] then
    store(line.account)
  end
end
if state == LIVE then
  run.r, run.c = run.r - held[1], run.c + charged[1]
  run.u = run.u + (target == EXPIRED and charged[1] or 0)
  call('ZREM', KEYS[3], tail)
  before = {0, 0, 0}
else
  run.c, run.u = run.c - before[1] + charged[1], run.u - before[1]
end
if target ~= EXPIRED then
  run.h = run.h - 1
  call('ZREM', KEYS[4], tail)
end
if target == RELEASED then
  run.k = run.k - 1
  call('LREM', KEYS[9], 1, tail .. ' ' .. found[8])
end
call('HSET', KEYS[BEFORE_RUNS + 1], 'c', int(run.c), 'r', int(run.r), 'u', int(run.u), 'k', run.k, 'h', run.h)
call('HSET', KEYS[2], 's', target, 'x', of_three(charged[1], charged[2], charged[3]), 'e', ARGV[8], 'z', int(now))
call('ZADD', KEYS[5], now, tail)
add_spend(
  KEYS[8], KEYS[7], math.floor(tonumber(found[4]) / 86400000), group,
  charged[1] - before[1], charged[2] - before[2], charged[3] - before[3]
)
if ARGV[10] ~= '' then
  act(KEYS[10], KEYS[11], ARGV[10], ARGV[11])
end
return {DONE, sequence, target, 1, charged[1], charged[2], charged[3], balances(lines), alerts, group}
