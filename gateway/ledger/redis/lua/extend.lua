-- The lease of a live hold ends later, and it may hold more, if every account has room by the rule it was reserved under.
--
-- KEYS   1 meta  2 the call  3 leases; then, to hold more: 4 accounts by end  5 accounts by run  6 shared accounts' scopes by end; then its
--        run and its ancestors; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms, or '': it ends when it did  5 what is to be held in all, as JSON: see `h` of a call
--        (common.lua), or '': only the lease  6 how many runs in KEYS  7 by how much each account may pass its rule, as JSON, or ''
-- Reply  {DONE, sequence}  {UNKNOWN, sequence}: refused, or not live  {AGAIN, sequence}: it has accounts that did not come in KEYS
-- What is held beyond that stays: an extension that is asked for again only moves the lease.
local BEFORE_RUNS, DAY_MS = 6, 86400000
local tail, target = ARGV[3], ARGV[5]
local kept = call_at(KEYS[2])
if not kept or kept.s ~= LIVE then
  return {UNKNOWN, sequence}
end
if target == '' then
  advance()
else
  local lines, run_count = cjson.decode(kept.n), tonumber(ARGV[6])
  if #KEYS < BEFORE_RUNS + run_count + accounts_of(lines) then
    return {AGAIN, sequence}
  end
  local run, above, place = run_at(KEYS[BEFORE_RUNS + 1]), {}, BEFORE_RUNS + 1
  for ancestor in string.gmatch(kept.a, '[^/]+') do
    place = place + 1
    above[ancestor] = run_at(KEYS[place])
  end
  meet(lines, BEFORE_RUNS + run_count, run, above)
  local held, wanted, more, over = kept.h, cjson.decode(target), {}, ARGV[7] ~= '' and cjson.decode(ARGV[7])
  for place = 1, 8 do -- without a slice, all of it is the same
    local from = (kept.sliced == 1 or place > 6) and place or (place - 1) % 3 + 1
    more[place] = math.max(0, wanted[from] - held[place])
  end
  for _, line in ipairs(lines) do
    if not fits(line, more[line[UNIT]], over and over[line[ORDINAL]] or 0) then
      return {UNKNOWN, sequence}
    end
    must_count(line.account, more[line[UNIT]])
  end
  advance()
  local names = nil
  for at, line in ipairs(lines) do
    if not line[TWIN] then
      if not line.account.e then -- it went while nothing was held there
        names = names or cjson.decode(kept.m)
        list(line.account, names[at], 4, (math.floor(kept.t / DAY_MS) + 1) * DAY_MS)
      end
      move(line.account, more[line[UNIT]], 0, 0)
      store(line.account)
    end
  end
  run.r = run.r + more[1]
  store_run(run)
  for place = 1, 8 do
    held[place] = held[place] + more[place]
  end
end
kept.l = ARGV[4] == '' and kept.l or now + tonumber(ARGV[4])
store_call(kept)
call('ZADD', KEYS[3], kept.l, tail)
return {DONE, sequence}
