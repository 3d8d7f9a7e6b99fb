-- Reserve, what a hold and a refusal do to the run and its ancestors: they exist from here on, have their place and limit, were used now.

-- A run is used now: its place in the lists follows. `issued`: by a call without a run id. `takes`: where it stands from now on, false: as
-- before. It is not stored yet.
local function use(each, issued, takes)
  local second = math.floor(now / 1000)
  if not each.o or each.o == '' or math.floor(each.t / 1000) ~= second then
    call('ZADD', KEYS[4], second, each.name)
    call('ZADD', KEYS[5], second, each.name)
  end
  if issued and each.o and not each.i then
    call('ZREM', KEYS[6], each.name)
  end
  if not each.o then
    each.f = now
  elseif each.s == PAUSED and not is_paused(each) then
    each.s, each.n = ACTIVE, NONE
  end
  each.t, each.i = now, issued
  each.o = each.o and each.o ~= '' and each.o or owner
  if takes and not each.p then
    each.p, each.a = true, takes
  end
  if not issued and each.p and each.s ~= STOPPED then
    call('ZADD', KEYS[6], now, each.name)
  end
end

-- The run exists from here on, is the caller's, has its place and the limit that the call asked for; its ancestors are used too. All but
-- the run are stored.
local function claim()
  use(run, caller[ISSUED], takes)
  if asks then
    run.q = caller[RUN_LIMIT] -- and its limit, before the ladder
  end
  if ancestors == '' then
    return
  end
  for each in string.gmatch(ancestors, '[^/]+') do
    local ancestor = above[each] or others[each] or parent
    local new_parent = takes and ancestor == parent
    if ancestor.o or new_parent then
      use(ancestor, ancestor.i, new_parent and '')
      store_run(ancestor)
    end
  end
end

