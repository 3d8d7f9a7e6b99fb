-- Reserve, or debit: all accounts of the first plan of the ladder that fits, or none (gateway/ledger/contract.py has the rules).
--
-- KEYS   1 meta  2 the call  3 leases  4 runs  5 the owner's runs  6 the owner's active runs  7 the run's recent holds  8 frozen
--        9 refused  10 refused by time  11 the ring  12 accounts by end  13 accounts by run  14 shared accounts' scopes by end  15 ended
--        16 days  17 of a debit the day's spend, of a hold those that lapse; then a run each: the caller's, its ancestors, the parent named if it is none of them, others that
--        a debit names; then the accounts of each text of lines
-- ARGV   1 epoch  2 sequence  3 tail  4 lease_ms  5 fingerprint  6 whose run it is  7 the run  8 its ancestry "parent/its parent"
--        9 the caller (see CALLER)  10 what is rarely looked at (see RARE)  11 the record's rest, kept as it is  12 the debit (see DEBIT)
--        or ''  13 the plans [[text, usd, tokens, calls, end of the group, usd, tokens, calls of its slice (false: it has none), credits,
--        risk points] …]: what is left off at its end is none  14 start of the group
--        15… the texts, two each: lines as lines.lua has them, and [key, end, mode] per line
-- Reply  {HELD, sequence, when, lease, plan, balances, warnings {line, limit, committed, reserved, unconfirmed}};
--        behind it 1 where it was held before
--        {REFUSED, sequence, now, paused, blocking, accounts}, both {text, line, limit, committed, reserved, unconfirmed, aging}
--        {BARRED, sequence, barrier, what, whose a foreign parent is}  {STALE, sequence, now, owner, ancestry}  {ENDED, sequence, state}
--        a debit: {DONE, sequence, state, changed, usd, tokens, calls, balances, alerts, credits, risk points}
--        {AGAIN, sequence, now, owner, ancestry}: its day is another, or the run's owner, or its ancestors, who did not all come in KEYS
local BEFORE_RUNS, BEFORE_TEXTS = 17, 14
local ISSUED, RUN_LIMIT, FROM, UNTIL, MAX_ACTIVE, IDLE = 1, 2, 3, 4, 5, 6 -- CALLER. FROM, UNTIL: of the windows. -1: none, any
local SAME, WITHIN, OFFSETS, PARENT, LAPSING = 7, 8, 9, 10, 11 -- OFFSETS: where each text's accounts start among those in KEYS; then their
-- number. LAPSING: whether the hold lapses
local SCOPE, VALUES, SHARED_END = 1, 2, 3 -- RARE: the run's scope; ",agent=a1,run=r1,"; when the day ends of a scope that is shared
local HOW, CHARGED, CLOSING, DAY, INDEXED, OTHERS = 1, 2, 3, 4, 5, 6 -- DEBIT. CHARGED: by UNIT
-- INDEXED: whose runs KEYS 5 and 6 are. OTHERS: names of further runs in KEYS
local ASK, ALWAYS, REPLAY = 1, 2, 3
local DEPTH, RING, DAY_MS = 8, 32, 86400000
local ACTIVE, STOPPED, PAUSED = 0, 1, 2

local tail, fingerprint, owner, name, ancestry = ARGV[3], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local caller, plans = cjson.decode(ARGV[9]), cjson.decode(ARGV[13])
local debit = ARGV[12] ~= '' and cjson.decode(ARGV[12])
local how = debit and debit[HOW] or 0

local run_count = 0
local function next_run(each)
  run_count = run_count + 1
  local found = run_at(KEYS[BEFORE_RUNS + run_count])
  found.name = each
  return found
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
  return each.s == PAUSED and (each.n == NONE or each.n == raises)
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

local known = call_at(KEYS[2])
if known then
  local state = known.s
  if debit then
    if not known.t then -- a tombstone
      return {DONE, sequence, state, 0, 0, 0, 0, {}, {}, 0, 0}
    end
    local x = known.x
    return {DONE, sequence, state, 0, x[1], x[2], x[3], balances(lines_of(1)), {}, x[4], x[5]}
  end
  if state ~= LIVE or known.f ~= fingerprint then
    return {ENDED, sequence, state}
  end
  local plan = known.p + 1
  local lines = lines_of(plans[plan][1])
  return {HELD, sequence, known.t, known.l, plan, balances(lines), warnings(lines, known.h), 1}
end

