-- The lease of a live hold ends later, and it may hold more, if every account has room by the rule it was reserved under.
--
-- KEYS   1 meta  2 the call  3 leases; then, to hold more, its run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 what is to be held in all, as a call holds it (common.lua: six), or '': only the lease
--        6 how many runs in KEYS
-- Reply  {DONE, sequence}  {UNKNOWN, sequence}: refused, or not live  {AGAIN, sequence}: it has accounts that did not come in KEYS
-- What is held beyond that stays: an extension that is asked for again only moves the lease.
local BEFORE_RUNS = 3
local tail, lease, target = ARGV[3], now + tonumber(ARGV[4]), ARGV[5]
local found = call('HMGET', KEYS[2], 's', 'h', 'n', 'a')
if tonumber(found[1]) ~= LIVE then
  return {UNKNOWN, sequence}
end
if target == '' then
  advance()
  call('HSET', KEYS[2], 'l', lease)
else
  local lines, run_count = cjson.decode(found[3]), tonumber(ARGV[6])
  if #KEYS < BEFORE_RUNS + run_count + accounts_of(lines) then
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
  local held, sliced = six(found[2])
  local wanted, more = six(target), {}
  for place = 1, 6 do -- without a slice, all of it is the same
    more[place] = math.max(0, wanted[sliced and place or (place - 1) % 3 + 1] - held[place])
  end
  for _, line in ipairs(lines) do
    if not fits(line, more[line[UNIT]]) then
      return {UNKNOWN, sequence}
    end
    must_count(line.account, more[line[UNIT]])
  end
  advance()
  for _, line in ipairs(lines) do
    if not line[TWIN] then
      move(line.account, more[line[UNIT]], 0, 0)
      store(line.account)
    end
  end
  call('HSET', KEYS[BEFORE_RUNS + 1], 'r', run.r + more[1])
  for place = 1, 6 do
    held[place] = int(held[place] + more[place])
  end
  call('HSET', KEYS[2], 'h', table.concat(held, ' ', 1, sliced and 6 or 3), 'l', lease)
end
call('ZADD', KEYS[3], lease, tail)
return {DONE, sequence}
