-- Reserve, or debit: all accounts of the first plan of the ladder that fits, or none (gateway/ledger/contract.py has the rules).
--
-- KEYS   1 meta  2 the call  3 leases  4 open  5 runs  6 the owner's runs  7 the owner's active runs  8 the run's recent holds  9 frozen
--        10 refused  11 refused by time  12 the ring  13 accounts by end  14 accounts by run  15 shared accounts' scopes by end  16 ended
--        17 days  18 the day's spend; then a run each: the caller's, its ancestors, the parent named if it is none of them, others that
--        a debit names; then the accounts of each text of lines
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 fingerprint  6 the owner  7 the run  8 its ancestry "parent/its parent"
--        9 the caller (see CALLER)  10 what is rarely looked at (see RARE)  11 the record's rest, kept as it is  12 the debit (see DEBIT)
--        or ''  13 the plans [[text, usd, tokens, calls, what it holds as text (see `six`), end of the group,
--        usd, tokens, calls of its slice] …]  14 start of the group
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
local HOW, CHARGED, CHARGED_TEXT, CLOSING, DAY, INDEXED, OTHERS = 1, 2, 3, 4, 5, 6, 7 -- DEBIT. CHARGED: {usd, tokens, calls, and again}
-- INDEXED: whose runs KEYS 6 and 7 are. OTHERS: names of further runs in KEYS
local ASK, ALWAYS, REPLAY = 1, 2, 3
local DEPTH, RING, DAY_MS = 8, 32, 86400000
local ACTIVE, STOPPED, PAUSED = '0', '1', '2'

local tail, fingerprint, owner, name, ancestry = ARGV[3], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local caller, plans = cjson.decode(ARGV[9]), cjson.decode(ARGV[13])
local debit = ARGV[12] ~= '' and cjson.decode(ARGV[12])
local how = debit and debit[HOW] or 0

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
  return {HELD, sequence, tonumber(known[6]), tonumber(known[3]), plan, balances(lines), warnings(lines, six(known[5]))}
end

