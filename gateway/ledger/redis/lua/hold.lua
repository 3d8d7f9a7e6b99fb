-- Reserve, where the first plan fits and its run and its accounts are known.
--
-- KEYS   see short.lua; the last: leases, the owner's active runs, runs, the owner's runs, the run's recent holds if some may be the
--        same, and those that lapse if this one does
-- ARGV   see short.lua; 2 … lease_ms, what is held (usd, tokens, calls, and again of its slice, if it has one)  3 tail  4 terms (see FROM
--        and UNIT), as doubles  5 per run how its texts begin, and its name, packed  6 lines, names, ancestry and group of the record, packed
--        7 fingerprint and rest, packed
-- Reply  sequence, when, lease, and per account its limit (NONE: none), committed, reserved, unconfirmed
local FROM, UNTIL, RUN_LIMIT, ISSUED, IDLE, SAME, WITHIN, LAPSING, RUNS = 1, 2, 3, 4, 5, 6, 7, 8, 9 -- LAPSING: LAPSES, or 0
local UNIT, LIMIT, BASIS, SHARE, MARGIN, OWN = 1, 2, 3, 4, 5, 6 -- of each line. OWN: the place of the run whose limit replaces it
local PINNED = -2 -- a LIMIT that is stored with the account, or is to be

local terms = {read('<' .. string.rep('d', #ARGV[4] / 8), ARGV[4])}
if frozen ~= 0 or found[2] or now < terms[FROM] or now >= terms[UNTIL] then
  return LONG
end
local _, _, lease_ms, usd, tokens, calls, slice_usd, slice_tokens, slice_calls
local sliced = #ARGV[2] > 48 and 1 or 0
if sliced == 1 then
  _, _, lease_ms, usd, tokens, calls, slice_usd, slice_tokens, slice_calls = read('<ddddddddd', ARGV[2])
else
  _, _, lease_ms, usd, tokens, calls = read('<dddddd', ARGV[2])
  slice_usd, slice_tokens, slice_calls = usd, tokens, calls
end
local tail, same, fingerprint = ARGV[3], terms[SAME], nil
if same > 0 then
  _, fingerprint = cmsgpack.unpack_one(ARGV[7])
  if fingerprint ~= '' and terms[WITHIN] > 1 then
    for _, each in ipairs(call('LRANGE', KEYS[count + 5], 0, terms[WITHIN] - 2)) do
      if string.match(each, ' (.*)$') == fingerprint then
        same = same - 1
      end
    end
    if same <= 0 then
      return LONG
    end
  end
end

local names, run_count, limits, raised, used, issued, at = {cmsgpack.unpack(ARGV[5])}, terms[RUNS], {}, {}, {}, {}, 5
for place = 1, run_count do
  local text, texts = found[place + 2], names[2 * place - 1]
  if not text or string.sub(text, RUN_SIZE + 1, RUN_SIZE + #texts) ~= texts then
    return LONG
  end
  local t, r, c, h, k, _, _, l, q, _, s, x, i, p = read(RUN, text)
  if s ~= ACTIVE or p ~= 1 then
    return LONG
  end
  limits[place], raised[place], used[place], issued[place] = l, x, t, i
  if place == 1 then
    if i ~= terms[ISSUED] or (terms[RUN_LIMIT] ~= NONE and terms[RUN_LIMIT] ~= q)
      or (terms[IDLE] ~= NONE and t <= now - terms[IDLE]) then
      return LONG
    end
    text = numbers('<ddddd', now, r + usd, c, h + 1, k + 1) .. string.sub(text, 41, RUN_SIZE) .. texts .. cmsgpack.pack(tail)
  else
    text = numbers('<d', now) .. string.sub(text, 9)
  end
  changes[at], changes[at + 1] = KEYS[place + 2], text
  at = at + 2
end

local lease = now + lease_ms
local held, told, size, line = {usd, tokens, calls, slice_usd, slice_tokens, slice_calls}, {sequence + 1, now, lease}, 3, RUNS
for place = run_count + 3, count do
  local text = found[place]
  if not text then
    return LONG
  end
  local r, c, u, _, effective = read(ACCOUNT, text)
  local amount, own = held[terms[line + UNIT]] or 0, limits[terms[line + OWN]] -- of credits and risk points it holds none
  if effective == NONE then
    effective = terms[line + LIMIT]
    if effective == PINNED then
      return LONG
    end
  end
  if own and own ~= NONE then
    effective = (effective == NONE or raised[terms[line + OWN]] == 1) and own or math.min(effective, own)
  end
  if effective ~= NONE and amount ~= 0 then
    local share = terms[line + SHARE]
    local room = (share < ALL and part(effective, share) or effective) + terms[line + MARGIN]
    if terms[line + BASIS] == 1 then
      if c >= room then
        return LONG
      end
    elseif r + c + amount > room then
      return LONG
    end
  end
  if c + r > MOST - amount then
    return LONG
  end
  r = r + amount
  changes[at], changes[at + 1] = KEYS[place], numbers('<d', r) .. string.sub(text, 9)
  told[size + 1], told[size + 2], told[size + 3], told[size + 4] = effective, c, r, u
  at, size, line = at + 2, size + 4, line + OWN
end

changes[4] = numbers(
  CALL, LIVE, lease, 0, 0, 0, 0, now, 0, 0, sliced + terms[LAPSING], usd, tokens, calls, slice_usd, slice_tokens, slice_calls
) .. ARGV[6] .. ARGV[7]
call('MSET', unpack(changes))
call('ZADD', KEYS[count + 1], lease, tail)
local second = math.floor(now / 1000)
for place = 1, run_count do
  local name = names[2 * place]
  if issued[place] == 0 then
    call('ZADD', KEYS[count + 2], now, name)
  end
  if math.floor(used[place] / 1000) ~= second then
    call('ZADD', KEYS[count + 3], second, name)
    call('ZADD', KEYS[count + 4], second, name)
  end
end
if same > 0 then
  call('LPUSH', KEYS[count + 5], tail .. ' ' .. fingerprint)
  call('LTRIM', KEYS[count + 5], 0, terms[WITHIN] - 1)
end
if terms[LAPSING] ~= 0 then
  call('ZADD', KEYS[#KEYS], now, tail)
end
return numbers('<' .. string.rep('i8', size), unpack(told))
