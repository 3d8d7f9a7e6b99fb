-- The lease of a live hold ends later, and it may hold more, if every account has room by the rule it was reserved under.
--
-- KEYS   1 meta  2 the call  3 leases; then, to hold more, its run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 '' or "usd tokens calls" as held so far  6 … as held after  7 how many runs in KEYS
-- Reply  {DONE, sequence}  {UNKNOWN, sequence}: refused, or not live  {AGAIN, sequence}: it holds neither, or has other accounts
-- Asked again after it was done, it finds what is held after, and only the lease moves.
local BEFORE_RUNS = 3
local tail, lease = ARGV[3], now + tonumber(ARGV[4])
local found = call('HMGET', KEYS[2], 's', 'h', 'n', 'a')
if tonumber(found[1]) ~= LIVE then
  return {UNKNOWN, sequence}
end
if ARGV[5] == '' or found[2] == ARGV[6] then
  advance()
else
  local lines, run_count = cjson.decode(found[3]), tonumber(ARGV[7])
  if found[2] ~= ARGV[5] or #KEYS < BEFORE_RUNS + run_count + accounts_of(lines) then
    return {AGAIN, sequence}
  end
  local function run_at(place)
    local run = call('HMGET', KEYS[BEFORE_RUNS + place], 'l', 'x', 'r')
    return {l = tonumber(run[1]), x = run[2], r = tonumber(run[3])}
  end
  local run, above, place = run_at(1), {}, 1
  for ancestor in string.gmatch(found[4] or '', '[^/]+') do
    place = place + 1
    above[ancestor] = run_at(place)
  end
  meet(lines, BEFORE_RUNS + run_count, run, above)
  local before, after, more = {three(ARGV[5])}, {three(ARGV[6])}, {}
  for unit = 1, 3 do
    more[unit] = after[unit] - before[unit]
  end
  for _, line in ipairs(lines) do
    if not fits(line, more[line[UNIT]]) then
      return {UNKNOWN, sequence}
    end
  end
  advance()
  for _, line in ipairs(lines) do
    if not line[TWIN] then
      move(line.account, more[line[UNIT]], 0, 0)
      store(line.account)
    end
  end
  call('HSET', KEYS[BEFORE_RUNS + 1], 'r', run.r + more[1])
end
call('HSET', KEYS[2], 'h', ARGV[6] ~= '' and ARGV[6] or found[2], 'l', lease)
call('ZADD', KEYS[3], lease, tail)
return {DONE, sequence}
