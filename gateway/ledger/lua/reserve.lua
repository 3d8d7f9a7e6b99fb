-- Reserve, or debit: all accounts of the first plan of the ladder that fits, or none (gateway/ledger/contract.py has the rules).
--
-- KEYS   1 meta  2 the call  3 leases  4 open  5 runs  6 the owner's runs  7 the owner's active runs  8 the run's recent holds  9 frozen
--        10 refused  11 refused by time  12 the ring  13 accounts by end  14 accounts by run  15 shared accounts' scopes by end  16 ended
--        17 days  18 the day's spend; then a run each: the caller's, its ancestors, the parent named if it is none of them, others that
--        a debit names; then the accounts of each text of lines
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 fingerprint  6 the owner  7 the run  8 its ancestry "parent/its parent"
--        9 the caller (see CALLER)  10 what is rarely looked at (see RARE)  11 the record's rest, kept as it is  12 the debit (see DEBIT)
--        or ''  13 the plans [[text, usd, tokens, calls, the three as text, end of the group] …]  14 start of the group
--        15… the texts, two each: lines as lines.lua has them, and [key, end, mode] per line
-- Reply  {HELD, sequence, when, lease, plan, balances, warnings {line, limit, committed, reserved, unconfirmed}}
--        {REFUSED, sequence, now, paused, blocking, accounts}, both {text, line, limit, committed, reserved, unconfirmed, aging}
--        {BARRED, sequence, barrier, what}  {STALE, sequence, now, owner, ancestry}  {ENDED, sequence, state}
--        a debit: {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts}  {AGAIN, sequence, now, owner, ancestry}: its
--        day is another, or the run's owner, or its ancestors, who did not all come in KEYS
local BEFORE_RUNS, BEFORE_TEXTS = 18, 14
local ISSUED, RUN_LIMIT, FROM, UNTIL, MAX_ACTIVE, IDLE = 1, 2, 3, 4, 5, 6 -- CALLER. FROM, UNTIL: of the windows. -1: none, any
local SAME, WITHIN, OFFSETS, PARENT = 7, 8, 9, 10 -- OFFSETS: where each text's accounts start among those in KEYS; then their number
local SCOPE, SCOPE_TEXT, VALUES, SHARED_END = 1, 2, 3, 4 -- RARE: the run's scope, percent-encoded too; ",agent=a1,run=r1,"
local HOW, CHARGED, CHARGED_TEXT, CLOSING, DAY, INDEXED, OTHERS = 1, 2, 3, 4, 5, 6, 7 -- DEBIT. CHARGED: {usd, tokens, calls}
-- INDEXED: whose runs KEYS 6 and 7 are. OTHERS: names of further runs in KEYS
local ASK, ALWAYS, REPLAY = 1, 2, 3
local DEPTH, RING, DAY_MS = 8, 32, 86400000
local ACTIVE, STOPPED, PAUSED = '0', '1', '2'

local tail, fingerprint, owner, name, ancestry = ARGV[3], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local caller, plans = cjson.decode(ARGV[9]), cjson.decode(ARGV[13])
local debit = ARGV[12] ~= '' and cjson.decode(ARGV[12])
local how = debit and debit[HOW] or 0

-- -- what it meets ---------------------------------------------------------------------------------------------------------------

local run_count = 0
local function next_run(each)
  run_count = run_count + 1
  local key = KEYS[BEFORE_RUNS + run_count]
  local found = call('HMGET', key, 'o', 't', 's', 'n', 'l', 'x', 'q', 'c', 'r', 'k', 'i', 'p', 'a', 'h')
  return {
    key = key, name = each, o = found[1], t = tonumber(found[2]), s = found[3], n = found[4], l = tonumber(found[5]), x = found[6],
    q = tonumber(found[7]), c = found[8] or 0, r = found[9] or 0, k = found[10] or 0, i = found[11], p = found[12],
    a = found[13] or '', h = found[14] or 0,
  }
end

local run = next_run(name)
local above = {} -- ancestors by name
local parent = false
if ancestry ~= '' then
  for each in string.gmatch(ancestry, '[^/]+') do
    above[each] = next_run(each)
  end
  above[name] = above[name] and run -- a replayed debit may name anything
end
if caller[PARENT] then
  parent = caller[PARENT] == name and run or above[caller[PARENT]] or next_run(caller[PARENT])
end
local others = {}
for _, each in ipairs(debit and debit[OTHERS] or {}) do
  others[each] = next_run(each)
end
local first_account = #KEYS - caller[OFFSETS][#caller[OFFSETS]]

local function lines_of(text, anew)
  return meet(cjson.decode(ARGV[BEFORE_TEXTS + 2 * text - 1]), first_account + caller[OFFSETS][text], run, above, anew)
end

local function owned_by_another(each)
  return each.o and each.o ~= '' and each.o ~= owner
end

local function is_paused(each)
  return each.s == PAUSED and (not each.n or each.n == '' or tonumber(each.n) == (tonumber(meta[3]) or 0))
end

-- {line, limit, committed, reserved, unconfirmed} of advisory accounts that stand above their limit with `more` on top.
local function warnings(lines, amounts, more)
  local told = {}
  for place, line in ipairs(lines) do
    if line[BASIS] == 2 and line.limit then
      local account, amount = line.account, amounts[line[UNIT]]
      if amount ~= 0 and account.r + account.c + (more and amount or 0) > room(line) then
        told[#told + 1] = {place, line.limit, account.c, account.r, account.u}
      end
    end
  end
  return told
end

local known = call('HMGET', KEYS[2], 's', 'f', 'l', 'p', 'h', 't', 'x', 'n')
if known[1] then
  local state = tonumber(known[1])
  if debit then
    if not known[8] then -- a tombstone
      return {DONE, sequence, state, 0, 0, 0, 0, {}, {}}
    end
    local usd, tokens, calls = three(known[7] or '0 0 0')
    return {DONE, sequence, state, 0, usd, tokens, calls, balances(lines_of(1)), {}}
  end
  if state ~= LIVE or (known[2] or '') ~= fingerprint then
    return {ENDED, sequence, state}
  end
  local plan = (tonumber(known[4]) or 0) + 1
  local lines = lines_of(plans[plan][1])
  return {HELD, sequence, tonumber(known[6]), tonumber(known[3]), plan, balances(lines), warnings(lines, {three(known[5])})}
end

-- -- whether it may be looked at at all ------------------------------------------------------------------------------------------

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
  local text = string.format('[%s,%.0f,"%s",[%.0f,%.0f,%.0f],', cjson.encode(scope), now, why, first[2], first[3], first[4])
  text = text .. ARGV[14] .. first[6] .. ',' .. ARGV[11] .. ',' .. texts(blocking) .. ',' .. texts(told) .. ']'
  call('LREM', KEYS[12], 0, tail)
  call('LPUSH', KEYS[12], tail)
  call('HSET', KEYS[10], tail, text)
  call('ZADD', KEYS[11], now, tail)
  while call('LLEN', KEYS[12]) > RING do
    local oldest = call('RPOP', KEYS[12])
    call('HDEL', KEYS[10], oldest)
    call('ZREM', KEYS[11], oldest)
  end
end

local function bar(barrier, what, why)
  if why and run.o then
    advance()
    remember(why, {}, {})
  end
  return {BARRED, sequence, barrier, what}
end

-- The run's place in the tree, or nil and the barrier that stands in the way.
local function place_of()
  local named = parent.name
  if run.p == '1' then
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
  for _, scope in ipairs(call('ZRANGE', KEYS[9], 0, -1)) do
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
    place = run.p == '1' and run.a or ''
  else
    place, barred = place_of()
  end
elseif how ~= REPLAY then
  return {STALE, sequence, now, run.o, ''}
end
if how ~= REPLAY then
  if barred then
    return bar(barred, caller[PARENT])
  end
  if place ~= ancestry or now < caller[FROM] or now >= caller[UNTIL] then
    return {STALE, sequence, now, owner, place}
  end
end
if how < ALWAYS then
  local answer = run.s and run.s ~= ACTIVE and stands_in_the_way(run)
  if place ~= '' then
    for each in string.gmatch(place, '[^/]+') do
      answer = answer or stands_in_the_way(above[each])
    end
  end
  answer = answer or (meta[4] and meta[4] ~= '0' and is_frozen())
  if answer then
    return answer
  end
  if caller[MAX_ACTIVE] >= 0 and not caller[ISSUED] then
    local idle_from = now - caller[IDLE]
    local active = run.p == '1' and run.s ~= STOPPED and run.i ~= '1' and run.t > idle_from
    if not active and call('ZCOUNT', KEYS[7], '(' .. int(idle_from), '+inf') >= caller[MAX_ACTIVE] then
      return bar('too_many_runs', int(caller[MAX_ACTIVE]))
    end
  end
  if caller[SAME] > 0 and caller[WITHIN] > 1 and fingerprint ~= '' then
    local same = 0
    for _, each in ipairs(call('LRANGE', KEYS[8], 0, caller[WITHIN] - 2)) do
      if string.match(each, ' (.*)$') == fingerprint then
        same = same + 1
      end
    end
    if same >= caller[SAME] then
      return bar('loop', int(same), 'loop_detected')
    end
  end
end
local takes = run.p ~= '1' and place -- its place from now on
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

-- -- the ladder ------------------------------------------------------------------------------------------------------------------

local asks = caller[RUN_LIMIT] >= 0 and mine and run.q ~= caller[RUN_LIMIT]
if asks then
  run.l = run.l and math.min(run.l, caller[RUN_LIMIT]) or caller[RUN_LIMIT]
end
local met, blocking, held, amounts = {}, {}, nil, nil
for number, plan in ipairs(plans) do
  local lines = met[plan[1]]
  if not lines then
    lines = lines_of(plan[1], true)
    met[plan[1]] = lines
  end
  amounts = {plan[2], plan[3], plan[4]}
  held = number
  if how < ALWAYS then
    for at_line, line in ipairs(lines) do
      if not fits(line, amounts[line[UNIT]]) then
        blocking[number] = at_line
        held = nil
        break
      end
    end
  end
  if held then
    break
  end
end

-- -- what becomes of it ----------------------------------------------------------------------------------------------------------

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

if not held then
  advance()
  local pauses, blocked, blocking_lines, told, told_lines, named = false, {}, {}, {}, {}, {}
  local function tell(text, at_line, line)
    local account, aging = line.account, {}
    if account.at then
      for index = account.o, account.at do
        local committed = bucket_of(account, index)[1]
        if committed > 0 then
          aging[#aging + 1] = (index + BUCKETS) * line[BUCKET]
          aging[#aging + 1] = committed
        end
      end
    end
    return {text, at_line, line.limit, account.c, account.r, account.u, aging}
  end
  for number, plan in ipairs(plans) do
    local text, at_line = plan[1], blocking[number]
    local lines = met[text]
    blocked[number] = tell(text, at_line, lines[at_line])
    blocking_lines[number] = {text, at_line, lines[at_line]}
    pauses = pauses or lines[at_line][PAUSE]
    for each, line in ipairs(lines) do
      if not named[line.account] then
        named[line.account] = true
        told[#told + 1] = tell(text, each, line)
        told_lines[#told_lines + 1] = {text, each, line}
      end
    end
  end
  pauses = pauses and not caller[ISSUED]
  if not caller[ISSUED] then
    local fields = claim()
    if pauses then
      for _, each in ipairs({'s', PAUSED, 'n', meta[3] or '0', 'b', ''}) do
        fields[#fields + 1] = each
      end
    end
    call('HSET', run.key, unpack(fields))
  end
  remember('ceiling_reached', told_lines, blocking_lines)
  return {REFUSED, sequence, now, pauses and 1 or 0, blocked, told}
end

local plan = plans[held]
local lines = met[plan[1]]
local warned = debit and #warnings(lines, amounts, true) > 0

-- An account that is new is written down where it is found by its end, or by the run that its scope names.
local function list(account, names)
  local key, ends = names[1], names[2]
  local scope = string.match(key, '|([^|]*)|[^|]*|[^|]*$')
  local run_named = string.match(',' .. scope, ',run=([^,]*)')
  if run_named then
    local rare = cjson.decode(ARGV[10])
    call('ZADD', KEYS[14], 0, run_named .. ' ' .. key)
    if rare[SHARED_END] > 0 and run_named == rare[SCOPE_TEXT] then
      call('ZADD', KEYS[15], rare[SHARED_END], run_named)
    end
  end
  if not run_named or ends < END_OF_TIME then
    call('ZADD', KEYS[13], ends, key)
  end
  call('HSET', account.key, 'e', ends)
end

for _, line in ipairs(lines) do
  must_count(line.account, (debit and debit[CHARGED] or amounts)[line[UNIT]])
end
advance()
local alerts, all_names = {}, nil
for at_line, line in ipairs(lines) do
  if not line[TWIN] then
    local account = line.account
    if debit then
      move(account, 0, debit[CHARGED][line[UNIT]], 0)
      if line[ALERTS] then
        fire(alerts, at_line, line)
      end
    else
      account.r = account.r + amounts[line[UNIT]]
    end
    if debit or account.at or not account.e then
      store(account)
    else
      call('HSET', account.key, 'r', account.r)
    end
    if not account.e then
      all_names = all_names or cjson.decode(ARGV[BEFORE_TEXTS + 2 * plan[1]])
      list(account, all_names[at_line])
    end
    if line.pins and not account.l then
      call('HSET', account.key, 'l', line.pins)
    end
  end
end
local fields = claim()
local count = #fields
fields[count + 1], fields[count + 2], fields[count + 3], fields[count + 4] = 'k', run.k + 1, 'g', tail
if debit then
  fields[count + 5], fields[count + 6] = 'c', run.c + debit[CHARGED][1]
else
  fields[count + 5], fields[count + 6], fields[count + 7], fields[count + 8] = 'r', run.r + amounts[1], 'h', run.h + 1
end
call('HSET', run.key, unpack(fields))

local kept = {'t', now, 'h', plan[5], 'g', ARGV[14] .. plan[6], 'n', ARGV[BEFORE_TEXTS + 2 * plan[1] - 1], 'm',
  ARGV[BEFORE_TEXTS + 2 * plan[1]], 'd', ARGV[11]}
local function keep(field, value)
  kept[#kept + 1] = field
  kept[#kept + 1] = value
end
local lease, over = now + tonumber(ARGV[4]), nil
if not debit then
  over = warnings(lines, amounts)
  warned = #over > 0
end
if fingerprint ~= '' then
  keep('f', fingerprint)
end
if held > 1 then
  keep('p', held - 1)
end
if warned then
  keep('w', '1')
end
if ancestry ~= '' then
  keep('a', ancestry)
end
if caller[SAME] > 0 then
  call('LPUSH', KEYS[8], tail .. ' ' .. fingerprint)
  call('LTRIM', KEYS[8], 0, caller[WITHIN] - 1)
end
if debit then
  local charged = debit[CHARGED]
  call('HSET', KEYS[2], 's', COMMITTED, 'x', debit[CHARGED_TEXT], 'e', debit[CLOSING], 'z', now, unpack(kept))
  call('ZADD', KEYS[16], now, tail)
  add_spend(KEYS[18], KEYS[17], debit[DAY], ARGV[14] .. plan[6], charged[1], charged[2], charged[3])
  return {DONE, sequence, COMMITTED, 1, charged[1], charged[2], charged[3], balances(lines), alerts}
end
call('HSET', KEYS[2], 's', LIVE, 'l', lease, unpack(kept))
call('ZADD', KEYS[3], lease, tail)
call('ZADD', KEYS[4], now, tail)
return {HELD, sequence, now, lease, held, balances(lines), over}
