-- Commit of a live hold, where no alert fires.
--
-- KEYS   see short.lua; the last: leases, ended, days, the spend of the day of its reserve
-- ARGV   see short.lua; 2 … usd, tokens, calls: what it cost  3 tail  4 terms (see DAY and UNIT), as doubles  5 the group of its spend
--        6 closing, packed
-- Reply  sequence, and per account its limit (NONE: none), committed, reserved, unconfirmed
local DAY, RUNS = 1, 2
local UNIT, LIMIT, OWN, ALERTS = 1, 2, 3, 4 -- of each line. ALERTS: how many, and then they. OWN: the place of the run whose limit replaces it

if not found[2] then
  return LONG
end
local state, lease, _, _, _, _, at_ms, warned, plan, marks, h1, h2, h3, h4, h5, h6 = read(CALL, found[2])
if state ~= LIVE or marks % LAPSES >= MORE then
  return LONG
end
local _, _, usd, tokens, calls = read('<ddddd', ARGV[2])
local terms = {read('<' .. string.rep('d', #ARGV[4] / 8), ARGV[4])}
local held, cost, limits, raised = {h1, h2, h3, h4, h5, h6}, {usd, tokens, calls, usd, tokens, calls}, {}, {}

local run_count = terms[RUNS]
for place = 1, run_count do
  if not found[place + 2] then
    return LONG
  end
  local t, r, c, h, _, _, _, l, _, _, _, x = read(RUN, found[place + 2])
  limits[place], raised[place] = l, x
  if place == 1 then
    changes[5], changes[6] = KEYS[3], numbers('<dddd', t, r - h1, c + usd, h - 1) .. string.sub(found[3], 33)
  end
end

local told, size, at, line = {sequence + 1}, 1, 7, RUNS
for place = run_count + 3, count do
  if not found[place] then
    return LONG
  end
  local r, c, u, alerted, effective = read(ACCOUNT, found[place])
  local unit, own, alerts = terms[line + UNIT], limits[terms[line + OWN]], terms[line + ALERTS]
  local gone, charged = held[unit] or 0, cost[unit] or 0 -- of credits and risk points it holds none
  if r < gone or c + r > MOST - charged then
    return LONG
  end
  r, c = r - gone, c + charged
  if effective == NONE then
    effective = terms[line + LIMIT]
  end
  if own and own ~= NONE then
    effective = (effective == NONE or raised[terms[line + OWN]] == 1) and own or math.min(effective, own)
  end
  line = line + ALERTS
  if effective ~= NONE and c > 0 then
    for each = line + 1, line + alerts do
      if terms[each] > alerted then
        if c >= part(effective, terms[each], true) then
          return LONG
        end
        break
      end
    end
  end
  line = line + alerts
  changes[at], changes[at + 1] = KEYS[place], numbers('<dd', r, c) .. string.sub(found[place], 17)
  told[size + 1], told[size + 2], told[size + 3], told[size + 4] = effective, c, r, u
  at, size = at + 2, size + 4
end

local tail = ARGV[3]
changes[4] = numbers(
  CALL, COMMITTED, lease, usd, tokens, calls, now, at_ms, warned, plan, marks, h1, h2, h3, h4, h5, h6
) .. string.sub(found[2], CALL_SIZE + 1) .. ARGV[6]
call('MSET', unpack(changes))
call('ZREM', KEYS[count + 1], tail)
call('ZADD', KEYS[count + 2], now, tail)
if usd ~= 0 or tokens ~= 0 or calls ~= 0 then
  local spent, more = call('HGET', KEYS[count + 4], ARGV[5]), ''
  if spent then
    local before_usd, before_tokens, before_calls = read('<ddd', spent)
    usd, tokens, calls, more = usd + before_usd, tokens + before_tokens, calls + before_calls, string.sub(spent, 25)
  else
    call('SADD', KEYS[count + 3], terms[DAY])
  end
  call('HSET', KEYS[count + 4], ARGV[5], numbers('<ddd', usd, tokens, calls) .. more)
end
return numbers('<' .. string.rep('i8', size), unpack(told))
