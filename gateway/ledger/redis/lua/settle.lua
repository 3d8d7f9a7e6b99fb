-- Ends a hold, once: commit, release, expire; an operator's settle is one of the first two. Also tells how a hold stands.
--
-- KEYS   1 meta  2 the call  3 leases  4 expired  5 ended  6 tombstones  7 days  8 the spend of the day of its reserve
--        9 its run's recent holds  10 acts  11 acts in order  12 accounts by end  13 accounts by run  14 shared accounts' scopes by end;
--        then its run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 the state to come to; 0: only look  5 usd  6 tokens  7 calls  8 credits  9 risk points: what to
--        charge, each '' for what is held  10 closing, kept as it is  11 how many runs in KEYS  12 an operator's act: its id, or ''
--        13 its text
-- Reply  {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts {line, threshold, limit, committed}, credits, risk points}
--        {UNKNOWN, sequence}  {AGAIN, sequence}: it has accounts that did not come in KEYS
local BEFORE_RUNS, DAY_MS = 14, 86400000
local tail, target, run_count = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[11])
local NOTHING = {0, 0, 0, 0, 0, 0, 0, 0}

local kept = call_at(KEYS[2])
if not kept then
  if target ~= RELEASED or ARGV[12] ~= '' then
    return {UNKNOWN, sequence}
  end
  advance()
  store_call({key = KEYS[2], s = RELEASED, l = 0, x = NOTHING, z = now, e = ARGV[10], w = 0, p = 0, sliced = 0, h = NOTHING})
  call('ZADD', KEYS[6], now, tail)
  return {DONE, sequence, RELEASED, 1, 0, 0, 0, {}, {}, 0, 0}
end
-- before: charged provisionally, of an expired one; in its accounts what was held there, or nothing where it lapses
local state, held, before = kept.s, kept.h, kept.x
if not kept.t then -- a tombstone
  return {DONE, sequence, state, 0, 0, 0, 0, {}, {}, 0, 0}
end
local provisional = kept.lapses and NOTHING or held

local lines = cjson.decode(kept.n)
local first_account = BEFORE_RUNS + run_count
if #KEYS < first_account + accounts_of(lines) then
  return {AGAIN, sequence}
end
local run, above, place = run_at(KEYS[BEFORE_RUNS + 1]), {}, BEFORE_RUNS + 1
for ancestor in string.gmatch(kept.a, '[^/]+') do
  place = place + 1
  above[ancestor] = run_at(KEYS[place])
end
meet(lines, first_account, run, above)

local last = target == EXPIRED and LIVE or EXPIRED -- of the states that can still come to `target`
if target == 0 or state > last or (target == EXPIRED and kept.l > now) then
  return {DONE, sequence, state, 0, before[1], before[2], before[3], balances(lines), {}, before[4], before[5]}
end

local charged = provisional
if target ~= EXPIRED then
  local usd, tokens, calls = tonumber(ARGV[5]) or held[1], tonumber(ARGV[6]) or held[2], tonumber(ARGV[7]) or held[3]
  charged = {usd, tokens, calls, usd, tokens, calls, tonumber(ARGV[8]) or held[7], tonumber(ARGV[9]) or held[8]}
end
local alerts = {}
for at, line in ipairs(lines) do
  if not line[TWIN] then
    local account, unit = line.account, line[UNIT]
    if state == LIVE then
      move(account, -held[unit], charged[unit], target == EXPIRED and charged[unit] or 0)
    else
      local index = line[BUCKET] and math.floor(kept.z / line[BUCKET])
      if not index or index >= account.o then
        move(account, 0, -provisional[unit], -provisional[unit], index)
      end
      move(account, 0, charged[unit], 0)
    end
    if line[ALERTS] then
      fire(alerts, at, line)
    end
  end
end

advance()
local names = nil
for at, line in ipairs(lines) do
  if not line[TWIN] then
    if not line.account.e then -- it went before this hold did: nothing counted there any more
      names = names or cjson.decode(kept.m)
      list(line.account, names[at], 12, (math.floor(kept.t / DAY_MS) + 1) * DAY_MS)
    end
    store(line.account)
  end
end
if state == LIVE then
  run.r, run.c = run.r - held[1], run.c + charged[1]
  if target == EXPIRED then
    run.u = run.u + charged[1]
    call('ZADD', KEYS[4], kept.t, tail)
  end
  call('ZREM', KEYS[3], tail)
else
  run.c, run.u = run.c - before[1] + charged[1], run.u - before[1]
  call('ZREM', KEYS[4], tail)
end
if target ~= EXPIRED then
  run.h = run.h - 1
end
if target == RELEASED then
  run.k = run.k - 1
  call('LREM', KEYS[9], 1, tail .. ' ' .. kept.f)
end
store_run(run)
kept.s, kept.x, kept.z, kept.e = target, {charged[1], charged[2], charged[3], charged[7], charged[8]}, now, ARGV[10]
store_call(kept)
call('ZADD', KEYS[5], now, tail)
add_spend(
  KEYS[8], KEYS[7], math.floor(kept.t / DAY_MS), kept.g,
  charged[1] - before[1], charged[2] - before[2], charged[3] - before[3], charged[7] - before[4], charged[8] - before[5]
)
if ARGV[12] ~= '' then
  act(KEYS[10], KEYS[11], ARGV[12], ARGV[13])
end
return {DONE, sequence, target, 1, charged[1], charged[2], charged[3], balances(lines), alerts, charged[7], charged[8]}
