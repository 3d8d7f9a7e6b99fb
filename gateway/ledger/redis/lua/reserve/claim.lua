-- Reserve, what a hold and a refusal do to the run and its ancestors: they exist from here on, have their place and limit, were used now.

-- A run is used now: its place in the lists follows. `issued`: by a call without a run id. `place`: where it stands from now on, false: as
-- before. Returns its hash's fields.
local function use(each, issued, takes)
  local second = math.floor(now / 1000)
  local fields = {'t', now}
  local placed = each.p == '1'
  if not placed or (each.i == '1') ~= issued or each.s ~= ACTIVE or each.o == '' then
    local function set(field, value)
      fields[#fields + 1] = field
      fields[#fields + 1] = value
    end
    if not each.o then
      set('f', now)
      set('p', '0')
    end
    if not each.o or each.o == '' then
      set('o', owner)
    end
    if takes and not placed then
      set('p', '1')
      set('a', takes)
      placed = true
    end
    if not each.o or (each.i == '1') ~= issued then
      set('i', issued and '1' or '0')
    end
    if not each.o or (each.s == PAUSED and not is_paused(each)) then
      set('s', ACTIVE)
      set('n', '')
    end
  end
  if not each.o or each.o == '' or math.floor(each.t / 1000) ~= second then
    call('ZADD', KEYS[5], second, each.name)
    call('ZADD', KEYS[6], second, each.name)
  end
  if issued then
    if each.i == '0' then
      call('ZREM', KEYS[7], each.name)
    end
  elseif placed and each.s ~= STOPPED then
    call('ZADD', KEYS[7], now, each.name)
  end
  return fields
end

-- The run exists from here on, is the caller's, has its place and the limit that the call asked for; its ancestors are used too.
local function claim()
  local fields = use(run, caller[ISSUED], takes)
  if asks then
    fields[#fields + 1] = 'l'
    fields[#fields + 1] = run.l
    fields[#fields + 1] = 'q'
    fields[#fields + 1] = caller[RUN_LIMIT]
  end
  if ancestors == '' then
    return fields
  end
  for each in string.gmatch(ancestors, '[^/]+') do
    local ancestor = above[each] or others[each] or parent
    local new_parent = takes and ancestor == parent
    if ancestor.o or new_parent then
      call('HSET', ancestor.key, unpack(use(ancestor, ancestor.i == '1', new_parent and '')))
    end
  end
  return fields
end

