-- Reserve, whether the ladder is looked at at all: the tree, windows, stops, pauses, freezes, too many runs, loops, in the contract's order.

-- The refusal's record, in the ring of the run's scope. `told` and `blocking`: {text, place of the line, line}.
local function remember(why, told, blocking)
  local function texts(lines)
    local each_text = {}
    for _, each in ipairs(lines) do
      local names, line = cjson.decode(ARGV[BEFORE_TEXTS + 2 * each[1]])[each[2]], each[3]
      each_text[#each_text + 1] = string.format(
        '[%s,%s,%.0f,%.0f,"%s"]', cjson.encode(names[1]), line.limit and int(line.limit) or 'null', line.account.c, line.account.r, names[3]
      )
    end
    return '[' .. table.concat(each_text, ',') .. ']'
  end
  local first, scope = plans[1], cjson.decode(ARGV[10])[SCOPE]
  local text = string.format('[%s,%.0f,"%s",[%.0f,%.0f,%.0f', cjson.encode(scope), now, why, first[2], first[3], first[4])
  text = text .. (first[9] and string.format(',%.0f,%.0f', first[9], first[10]) or '') .. '],'
  text = text .. ARGV[14] .. first[5] .. ',' .. ARGV[11] .. ',' .. texts(blocking) .. ',' .. texts(told) .. ']'
  call('LREM', KEYS[11], 0, tail)
  call('LPUSH', KEYS[11], tail)
  call('HSET', KEYS[9], tail, text)
  call('ZADD', KEYS[10], now, tail)
  while call('LLEN', KEYS[11]) > RING do
    local oldest = call('RPOP', KEYS[11])
    call('HDEL', KEYS[9], oldest)
    call('ZREM', KEYS[10], oldest)
  end
end

local function bar(barrier, what, why, whose)
  if why and run.o then
    advance()
    remember(why, {}, {})
  end
  return {BARRED, sequence, barrier, what, whose or ''}
end

-- The run's place in the tree, or nil and the barrier that stands in the way.
local function place_of()
  local named = parent.name
  if run.p then
    if string.match(run.a, '^[^/]*') ~= named then
      return nil, 'parent_changed'
    end
    return run.a
  end
  if named == name or string.find('/' .. parent.a .. '/', '/' .. name .. '/', 1, true) then
    return nil, 'cycle'
  end
  if owned_by_another(parent) then
    return nil, 'foreign_parent'
  end
  local place = parent.a == '' and named or named .. '/' .. parent.a
  if select(2, string.gsub(place, '/', '')) >= DEPTH then
    return nil, 'too_deep'
  end
  return place
end

local function stands_in_the_way(each)
  if each.s == STOPPED then
    return bar('stopped', each.name, 'run_stopped')
  elseif is_paused(each) then
    return bar('paused', each.name, 'run_paused')
  end
end

local function is_frozen()
  local values = cjson.decode(ARGV[10])[VALUES]
  for _, scope in ipairs(call('ZRANGE', KEYS[8], 0, -1)) do
    local matches = true
    if scope ~= 'tenant' then
      for value in string.gmatch(scope, '[^,]+') do
        matches = matches and string.find(values, ',' .. value .. ',', 1, true)
      end
    end
    if matches then
      return bar('frozen', scope, 'scope_frozen')
    end
  end
end

local mine, place, barred = not owned_by_another(run), nil, nil
if mine then
  if not parent then
    place = run.p and run.a or ''
  else
    place, barred = place_of()
  end
elseif how ~= REPLAY then
  return {STALE, sequence, now, run.o, ''}
end
if how ~= REPLAY then
  if barred then
    return bar(barred, caller[PARENT], nil, barred == 'foreign_parent' and parent.o)
  end
  if place ~= ancestry or now < caller[FROM] or now >= caller[UNTIL] then
    return {STALE, sequence, now, owner, place}
  end
end
if how < ALWAYS then
  local answer = run.s ~= ACTIVE and stands_in_the_way(run)
  if place ~= '' then
    for each in string.gmatch(place, '[^/]+') do
      answer = answer or stands_in_the_way(above[each])
    end
  end
  answer = answer or (frozen ~= 0 and is_frozen())
  if answer then
    return answer
  end
  if caller[MAX_ACTIVE] >= 0 and not caller[ISSUED] then
    local idle_from = now - caller[IDLE]
    local active = run.p and run.s ~= STOPPED and not run.i and run.t > idle_from
    if not active and call('ZCOUNT', KEYS[6], '(' .. int(idle_from), '+inf') >= caller[MAX_ACTIVE] then
      return bar('too_many_runs', int(caller[MAX_ACTIVE]))
    end
  end
  if caller[SAME] > 0 and caller[WITHIN] > 1 and fingerprint ~= '' then
    local same = 0
    for _, each in ipairs(call('LRANGE', KEYS[7], 0, caller[WITHIN] - 2)) do
      if string.match(each, ' (.*)$') == fingerprint then
        same = same + 1
      end
    end
    if same >= caller[SAME] then
      return bar('loop', int(same), 'loop_detected')
    end
  end
end
local takes = not run.p and place -- its place from now on
local ancestors = takes or run.a
if debit then
  local known_all = math.floor(now / DAY_MS) == debit[DAY] and (not run.o or run.o == '' or run.o == debit[INDEXED])
  for each in string.gmatch(ancestors, '[^/]+') do
    known_all = known_all and (above[each] or others[each] or (parent and parent.name == each))
  end
  if not known_all then
    return {AGAIN, sequence, now, run.o or owner, ancestors}
  end
end

