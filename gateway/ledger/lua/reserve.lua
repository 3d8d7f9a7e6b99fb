-- Reserve, or debit: all accounts of the first plan of the ladder that fits, or none (gateway/ledger/contract.py has the rules).
--
-- KEYS   1 meta  2 the call  3 leases  4 open  5 runs  6 the owner's runs  7 the owner's active runs  8 the run's recent holds  9 frozen
--        10 refused  11 refused by time  12 the ring  13 accounts by end  14 accounts by run  15 shared accounts' scopes by end  16 ended
--        17 days  18 the day's spend; then a run each: the caller's, its ancestors, the parent named if it is not the first of these;
--        then the accounts of each text of lines
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 fingerprint  6 the caller (see CALLER)  7 the record's rest, kept as it is
--        8 the debit (see DEBIT), or ''  9 the plans [[text, usd, tokens, calls, end of the group] …]  10 start of the group
--        11… the texts: lines as lines.lua has them
-- Reply  {HELD, sequence, when, lease, plan, balances, warnings {line, limit, committed, reserved, unconfirmed}}
--        {REFUSED, sequence, now, paused, blocking, accounts}, both {text, line, limit, committed, reserved, unconfirmed, aging}
--        {BARRED, sequence, barrier, what}  {STALE, sequence, now, owner, ancestry}  {ENDED, sequence, state}
--        a debit: {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts}  {AGAIN, sequence, now, owner}: its day is
--        another, or the run's owner
local BEFORE_RUNS = 18
local RUN, SCOPE, OWNER, ISSUED, RUN_LIMIT, PARENT, ANCESTRY = 1, 2, 3, 4, 5, 6, 7 -- CALLER; RUN_LIMIT -1: none
local MAX_ACTIVE, IDLE, SAME, WITHIN, VALUES, SHARED_END = 8, 9, 10, 11, 12, 13 -- MAX_ACTIVE -1: any. VALUES: ",agent=a1,run=r1,"
local FROM, UNTIL, RUNS, OFFSETS, SCOPE_TEXT = 14, 15, 16, 17, 18 -- FROM, UNTIL: of the windows. RUNS: the names of those in KEYS.
-- OFFSETS: where each text's accounts start in KEYS, after the runs. SCOPE_TEXT: the run's scope, percent-encoded
local HOW, CHARGED, CLOSING, DAY, AT, INDEXED = 1, 2, 3, 4, 5, 6 -- DEBIT. CHARGED: {usd, tokens, calls}. AT: when it was, -1: now
-- INDEXED: whose runs KEYS 6 and 7 are
local ASK, ALWAYS, REPLAY = 1, 2, 3
local DEPTH, RING, DAY_MS = 8, 32, 86400000
local ACTIVE, STOPPED, PAUSED = '0', '1', '2'

local tail, lease_ms, fingerprint = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local caller = cjson.decode(ARGV[6])
local debit = ARGV[8] ~= '' and cjson.decode(ARGV[8]) or {0}
local how = debit[HOW]
local name, owner, ancestry = caller[RUN], caller[OWNER], caller[ANCESTRY]
local plans = cjson.decode(ARGV[9])
local first_account = BEFORE_RUNS + #caller[RUNS]

local at = (debit[AT] or -1) < 0 and now or debit[AT]

local function run_at(place)
  local found = call('HMGET', KEYS[BEFORE_RUNS + place], 'o', 't', 's', 'n', 'l', 'x', 'q', 'c', 'r', 'k', 'i', 'p', 'a', 'h')
  return {
    key = KEYS[BEFORE_RUNS + place], name = caller[RUNS][place], o = found[1], t = tonumber(found[2]), s = found[3],
    n = tonumber(found[4]), l = tonumber(found[5]), x = found[6], q = tonumber(found[7]), c = tonumber(found[8]) or 0,
    r = tonumber(found[9]) or 0, k = tonumber(found[10]) or 0, i = found[11], p = found[12], a = found[13] or '',
    h = tonumber(found[14]) or 0,
  }
end

local function owned_by_another(run)
  return run.o and run.o ~= '' and run.o ~= owner
end

local function is_paused(run)
  return run.s == PAUSED and (not run.n or run.n == (tonumber(meta[3]) or 0))
end

-- The run's place in the tree: its ancestors, nearest first, as text. Or the barrier that stands in the way.
local function place_of(run, parent)
  local named = caller[PARENT]
  if run.p == '1' then
    if named ~= '' and string.match(run.a, '^[^/]*') ~= named then
      return nil, 'parent_changed'
    end
    return run.a
  end
  if named == '' then
    return ''
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

local runs, above = {}, {} -- by name; `above` are the ancestors
for place, each in ipairs(caller[RUNS]) do
  runs[each] = run_at(place)
end
for _, each in ipairs(ancestry) do
  above[each] = runs[each]
end
local run, parent = runs[name], runs[caller[PARENT]]

local function lines_of(text, anew)
  return meet(cjson.decode(ARGV[10 + text]), first_account + caller[OFFSETS][text], run, above, anew)
end

-- {line, limit, committed, reserved, unconfirmed} of advisory accounts that stand above their limit with `more` on top.
local function warnings(lines, amounts, more)
  local told = {}
  for place, line in ipairs(lines) do
    local account, amount = line.account, amounts[line[UNIT]]
    if line[BASIS] == 2 and line.limit and amount ~= 0 and account.r + account.c + (more and amount or 0) > room(line) then
      told[#told + 1] = {place, line.limit, account.c, account.r, account.u}
    end
  end
  return told
end

-- The refusal's record, in the ring of the run's scope. `told` and `blocking`: lines.
local function remember(why, told, blocking)
  local function texts(lines)
    local each_text = {}
    for _, line in ipairs(lines) do
      local account = line.account
      each_text[#each_text + 1] = string.format(
        '[%s,%s,%.0f,%.0f,"%s"]', cjson.encode(line[KEY]), line.limit and int(line.limit) or 'null', account.c, account.r, line[MODE]
      )
    end
    return '[' .. table.concat(each_text, ',') .. ']'
  end
  local first = plans[1]
  local text = string.format('[%s,%.0f,"%s",[%.0f,%.0f,%.0f],', cjson.encode(caller[SCOPE]), now, why, first[2], first[3], first[4])
  text = text .. ARGV[10] .. first[5] .. ',' .. ARGV[7] .. ',' .. texts(blocking) .. ',' .. texts(told) .. ']'
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

-- A run is used now: its place in the lists follows. `issued`: by a call without a run id. `place`: where it stands from now on, nil: as
-- before. Returns its hash's fields.
local function use(each, issued, place)
  local fields, second = {'t', int(now)}, math.floor(now / 1000)
  local function set(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  local known = each.o and each.o ~= ''
  if not each.o then
    set('f', int(now))
    set('p', '0')
  end
  if not known then
    set('o', owner)
  end
  if place and each.p ~= '1' then
    set('p', '1')
    set('a', place)
    each.p = '1'
  end
  if not each.o or (each.i == '1') ~= issued then
    set('i', issued and '1' or '0')
  end
  if not each.o or (each.s == PAUSED and not is_paused(each)) then
    set('s', ACTIVE)
    set('n', '')
  end
  if not known or math.floor(each.t / 1000) ~= second then
    call('ZADD', KEYS[5], second, each.name)
    call('ZADD', KEYS[6], second, each.name)
  end
  if issued and each.i == '0' then
    call('ZREM', KEYS[7], each.name)
  elseif not issued and each.p == '1' and each.s ~= STOPPED then
    call('ZADD', KEYS[7], now, each.name)
  end
  return fields, set
end

-- The run exists from here on, is the caller's, has its place and the limit that the call asked for; its ancestors are used too.
local function claim(limit, place)
  local takes = run.p ~= '1' and place
  local fields, set = use(run, caller[ISSUED], place)
  if run.asks then
    set('l', int(limit))
    set('q', int(caller[RUN_LIMIT]))
  end
  for ancestor in string.gmatch(takes or run.a, '[^/]+') do
    local each = runs[ancestor]
    local new_parent = takes and each == parent
    if each and (each.o or new_parent) then
      call('HSET', each.key, unpack((use(each, each.i == '1', new_parent and ''))))
    end
  end
  return fields, set
end

local function account_is_new(line)
  local key = line[KEY]
  local scope = string.match(key, '|([^|]*)|[^|]*|[^|]*$')
  local named = string.match(',' .. scope, ',run=([^,]*)')
  if named then
    call('ZADD', KEYS[14], 0, named .. ' ' .. key)
    if caller[SHARED_END] > 0 and named == caller[SCOPE_TEXT] then
      call('ZADD', KEYS[15], caller[SHARED_END], named)
    end
  end
  if not named or line[END] < END_OF_TIME then
    call('ZADD', KEYS[13], line[END], key)
  end
end

-- Accounts as a hold or debit leaves them.
local function store_accounts(lines, reserved_only)
  for _, line in ipairs(lines) do
    local account = line.account
    if not line[TWIN] then
      if not account.e then
        account.e = line[END]
        call('HSET', account.key, 'e', int(line[END]))
        account_is_new(line)
        store(account)
      elseif reserved_only and not account.at then
        call('HSET', account.key, 'r', int(account.r))
      else
        store(account)
      end
      if line.pins and not account.l then
        account.l = line.pins
        call('HSET', account.key, 'l', int(line.pins))
      end
    end
  end
end

local function record(state, plan, amounts, warned, more)
  call('HSET', KEYS[2], 's', state, 't', int(at), 'h', of_three(amounts[1], amounts[2], amounts[3]), 'f', fingerprint, 'p', plan - 1,
    'w', warned and '1' or '0', 'r', name, 'a', table.concat(ancestry, '/'), 'o', owner, 'g', ARGV[10] .. plans[plan][5], 'n', ARGV[10 + plans[plan][1]],
    'd', ARGV[7], unpack(more))
  if caller[SAME] > 0 then
    call('LPUSH', KEYS[8], tail .. ' ' .. fingerprint)
    call('LTRIM', KEYS[8], 0, caller[WITHIN] - 1)
  end
end

local function hold(plan, lines, amounts, limit, place)
  advance()
  for _, line in ipairs(lines) do
    if not line[TWIN] then
      move(line.account, amounts[line[UNIT]], 0, 0)
    end
  end
  store_accounts(lines, true)
  local fields, set = claim(limit, place)
  set('r', int(run.r + amounts[1]))
  set('k', run.k + 1)
  set('h', run.h + 1)
  set('g', tail)
  call('HSET', run.key, unpack(fields))
  local lease = now + lease_ms
  local warned = warnings(lines, amounts)
  record(LIVE, plan, amounts, #warned > 0, {'l', int(lease)})
  call('ZADD', KEYS[3], lease, tail)
  call('ZADD', KEYS[4], now, tail)
  return {HELD, sequence, now, lease, plan, balances(lines), warned}
end

local function charge(plan, lines, amounts, limit, place)
  local warned = #warnings(lines, amounts, true) > 0
  advance()
  local charged, alerts = debit[CHARGED], {}
  for at, line in ipairs(lines) do
    if not line[TWIN] then
      move(line.account, 0, charged[line[UNIT]], 0)
      fire(alerts, at, line)
    end
  end
  store_accounts(lines, false)
  local fields, set = claim(limit, place)
  set('c', int(run.c + charged[1]))
  set('k', run.k + 1)
  set('g', tail)
  call('HSET', run.key, unpack(fields))
  record(COMMITTED, plan, amounts, warned, {'x', of_three(charged[1], charged[2], charged[3]), 'e', debit[CLOSING], 'z', int(now)})
  call('ZADD', KEYS[16], now, tail)
  add_spend(KEYS[18], KEYS[17], debit[DAY], ARGV[10] .. plans[plan][5], charged[1], charged[2], charged[3])
  return {DONE, sequence, COMMITTED, 1, charged[1], charged[2], charged[3], balances(lines), alerts}
end

local function refuse(met, blocking, limit, place)
  advance()
  local pauses, blocked, told, lines_told, named = false, {}, {}, {}, {}
  local function tell(text, at, line)
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
    return {text, at, line.limit, account.c, account.r, account.u, aging}
  end
  local blocking_lines = {}
  for place_in_ladder, plan in ipairs(plans) do
    local lines = met[plan[1]]
    local at = blocking[place_in_ladder]
    blocked[place_in_ladder] = tell(plan[1], at, lines[at])
    blocking_lines[place_in_ladder] = lines[at]
    pauses = pauses or lines[at][PAUSE]
    for at_line, line in ipairs(lines) do
      if not named[line.account] then
        named[line.account] = true
        told[#told + 1] = tell(plan[1], at_line, line)
        lines_told[#lines_told + 1] = line
      end
    end
  end
  pauses = pauses and not caller[ISSUED]
  if not caller[ISSUED] then
    local fields, set = claim(limit, place)
    if pauses then
      set('s', PAUSED)
      set('n', meta[3] or '0')
      set('b', '')
    end
    call('HSET', run.key, unpack(fields))
  end
  remember('ceiling_reached', lines_told, blocking_lines)
  return {REFUSED, sequence, now, pauses and 1 or 0, blocked, told}
end

-- Whether the call may be looked at at all: nil, or the answer.
local function barrier(place)
  local line_up = {run}
  for ancestor in string.gmatch(place, '[^/]+') do
    line_up[#line_up + 1] = runs[ancestor]
  end
  for _, each in ipairs(line_up) do
    if each.s == STOPPED then
      return bar('stopped', each.name, 'run_stopped')
    end
    if is_paused(each) then
      return bar('paused', each.name, 'run_paused')
    end
  end
  if tonumber(meta[4] or 0) > 0 then
    for _, scope in ipairs(call('ZRANGE', KEYS[9], 0, -1)) do
      local matches = true
      if scope ~= 'tenant' then
        for value in string.gmatch(scope, '[^,]+') do
          matches = matches and string.find(caller[VALUES], ',' .. value .. ',', 1, true)
        end
      end
      if matches then
        return bar('frozen', scope, 'scope_frozen')
      end
    end
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

local known = call('HMGET', KEYS[2], 's', 'f', 'l', 'p', 'h', 't', 'x', 'n')
local state = tonumber(known[1])
if state and how > 0 then
  if not known[8] then -- a tombstone
    return {DONE, sequence, state, 0, 0, 0, 0, {}, {}}
  end
  local usd, tokens, calls = three(known[7] or '0 0 0')
  return {DONE, sequence, state, 0, usd, tokens, calls, balances(lines_of(1)), {}}
elseif state then
  if state ~= LIVE or known[2] ~= fingerprint then
    return {ENDED, sequence, state}
  end
  local plan = tonumber(known[4]) + 1
  local lines = lines_of(plans[plan][1])
  return {HELD, sequence, tonumber(known[6]), tonumber(known[3]), plan, balances(lines), warnings(lines, {three(known[5])})}
end

local mine = not owned_by_another(run)
if not mine and how ~= REPLAY then
  return {STALE, sequence, now, run.o, ''}
end
local place, barred = nil, 'foreign_parent'
if mine then
  place, barred = place_of(run, parent)
end
if how ~= REPLAY then
  if barred then
    return bar(barred, caller[PARENT])
  end
  if place ~= table.concat(ancestry, '/') or now < caller[FROM] or now >= caller[UNTIL] then
    return {STALE, sequence, now, owner, place}
  end
end
if how < ALWAYS then
  local answer = barrier(place)
  if answer then
    return answer
  end
end
if how > 0 and (math.floor(at / DAY_MS) ~= debit[DAY] or (run.o and run.o ~= '' and run.o ~= debit[INDEXED])) then
  return {AGAIN, sequence, now, run.o or owner}
end

local limit = run.l
run.asks = caller[RUN_LIMIT] >= 0 and mine and run.q ~= caller[RUN_LIMIT]
if run.asks then
  limit = limit and math.min(limit, caller[RUN_LIMIT]) or caller[RUN_LIMIT]
end
run.l = limit -- as the run's ceilings see it
local met, blocking = {}, {}
for number, plan in ipairs(plans) do
  local lines = met[plan[1]] or lines_of(plan[1], true)
  met[plan[1]] = lines
  local amounts = {plan[2], plan[3], plan[4]}
  if how < ALWAYS then
    for at_line, line in ipairs(lines) do
      if not fits(line, amounts[line[UNIT]]) then
        blocking[number] = at_line
        break
      end
    end
  end
  if not blocking[number] then
    return (how == 0 and hold or charge)(number, lines, amounts, limit, place)
  end
end
return refuse(met, blocking, limit, place)
