-- What a plan's charges and their accounts are to the scripts that move money. Stands after common.lua where it is needed.
--
-- A line is an array (gateway/ledger/lines.py writes it); what is left off at its end is false:
local ORDINAL, UNIT, LIMIT, BASIS = 1, 2, 3, 4 -- LIMIT -1: none. BASIS 0: reserved+committed, 1: committed, 2: none
-- UNIT: 1 USD, 2 tokens, 3 calls; 4 to 6 the same where a slice is held instead of the worst case; 7 credits, 8 risk points, which have none
local ALERTS, OWN, SHARE, MARGIN, TWIN = 5, 6, 7, 8, 9 -- OWN: the run whose own limit replaces this one. SHARE: false is all of it
local BUCKET, PAUSE, PINNED, PINNED_TO = 10, 11, 12, 13 -- BUCKET: the length of a rolling window's. PINNED_TO: the place of a line
local BUCKETS, END_OF_TIME = 60, 9007199254740992
local SHARED = 'untagged%2F' -- how the scope begins that calls without a run id share
local MOST = 9007199254740992 -- that one account can count; so no sum is made that may be above it

-- Ends the step, with nothing written so far: it would break the books.
local function impossible(why, account)
  error('impossible: ' .. why .. ': ' .. account.key)
end

local function must_count(account, more)
  if account.c + account.r > MOST - more then
    impossible('more than it can count', account)
  end
end

-- An account: r(eserved) c(ommitted) u(nconfirmed) a(lerted) l(imit) e(nd) f(orwarded: carried) j (adjusted). Of a rolling window also
-- o, the oldest bucket that c and u count, and per bucket its index, committed, unconfirmed and carried. One that there is not has no `e`.
local ACCOUNT = '<dddddddd'
local accounts = {}

local function bucket_of(account, index)
  local bucket = account.buckets[index]
  if not bucket then
    bucket = {0, 0, 0}
    account.buckets[index] = bucket
  end
  return bucket
end

local function account_at(key, bucket_ms)
  local account = accounts[key]
  if account then
    return account
  end
  account = {key = key, c = 0, r = 0, u = 0, a = 0, f = 0, j = 0}
  local text, kept = call('GET', key), {}
  if bucket_ms then
    kept = text and {read('<' .. string.rep('d', #text / 8), text)} or kept
    account.at, account.buckets = math.floor(now / bucket_ms), {}
  end
  if text then
    account.r, account.c, account.u, account.a, account.l, account.e, account.f, account.j = read(ACCOUNT, text)
    account.l, account.e = account.l ~= NONE and account.l or nil, account.e ~= NONE and account.e or nil
  end
  accounts[key] = account
  if bucket_ms then -- what has fallen out of the window no longer counts, and is not kept any more
    local oldest = account.at - BUCKETS + 1
    account.o = oldest
    if #kept > 9 then -- the last is where it was read to
      account.o = math.max(kept[9], oldest)
    end
    for at = 10, #kept - 1, 4 do
      if kept[at] >= account.o then
        account.buckets[kept[at]] = {kept[at + 1], kept[at + 2], kept[at + 3]}
      else
        account.c, account.u = account.c - kept[at + 1], account.u - kept[at + 2]
      end
    end
  end
  return account
end

-- Adds; to committed and unconfirmed in the bucket `index`, by default the present one.
local function move(account, reserved, committed, unconfirmed, index)
  must_count(account, reserved + committed)
  account.r = account.r + reserved
  account.c = account.c + committed
  account.u = account.u + unconfirmed
  if account.at and (committed ~= 0 or unconfirmed ~= 0) then
    local bucket = bucket_of(account, index or account.at)
    bucket[1], bucket[2] = bucket[1] + committed, bucket[2] + unconfirmed
  end
  if account.r < 0 or account.u < 0 or account.u > account.c then
    impossible('below zero', account)
  end
end

local function store(account)
  local text = numbers(
    ACCOUNT, account.r, account.c, account.u, account.a, account.l or NONE, account.e or NONE, account.f, account.j
  )
  if account.at then
    local kept, count = {account.o}, 1
    for index, bucket in pairs(account.buckets) do
      kept[count + 1], kept[count + 2], kept[count + 3], kept[count + 4] = index, bucket[1], bucket[2], bucket[3]
      count = count + 4
    end
    text = text .. numbers('<' .. string.rep('d', count), unpack(kept))
  end
  call('SET', account.key, text)
end

-- An account that is new, or was forgotten, is written down where it is found by its end, or by the run that its scope names. `names`: [key,
-- end, mode] of its line. `first`: the place in KEYS of accounts by end; then come accounts by run, and shared accounts' scopes by end.
-- `day_ends`: when the day ends of a scope that calls without a run id share.
local function list(account, names, first, day_ends)
  local key, ends = names[1], names[2]
  local scope = string.match(key, '|([^|]*)|[^|]*|[^|]*$')
  local run_named = string.match(',' .. scope, ',run=([^,]*)')
  if run_named then
    call('ZADD', KEYS[first + 1], 0, run_named .. ' ' .. key)
    if string.sub(run_named, 1, #SHARED) == SHARED then
      call('ZADD', KEYS[first + 2], day_ends, run_named)
    end
  end
  if not run_named or ends < END_OF_TIME then
    call('ZADD', KEYS[first], ends, key)
  end
  account.e = ends
end

-- amount * ppm / 1,000,000, rounded down (or up), exact although the product would not be.
local function part(amount, ppm, up)
  local low = amount % 1000000
  return (amount - low) / 1000000 * ppm + (up and math.ceil or math.floor)(low * ppm / 1000000)
end

-- A line's effective limit, or false. `own`, and `above` by name: the call's run and its ancestors. `anew`: a share that is not pinned yet
-- stands at what its pin would be.
local function limit_of(lines, line, own, above, anew)
  local limit = line.account.l
  if not limit and line[PINNED] then
    local whole = anew and lines[line[PINNED_TO]]
    local top = whole and limit_of(lines, whole, own, above, anew)
    limit = top and part(math.max(0, top - whole.account.c - whole.account.r), line[PINNED])
    line.pins = limit
  elseif not limit and line[LIMIT] >= 0 then
    limit = line[LIMIT]
  end
  local run = line[OWN] and (above[line[OWN]] or own)
  if run and run.l then
    limit = (run.x or not limit) and run.l or math.min(limit, run.l)
  end
  return limit or false
end

-- Lines where they meet their accounts. `first`: the place in KEYS before the first account's.
local function meet(lines, first, own, above, anew)
  for _, line in ipairs(lines) do
    line.account = account_at(KEYS[first + line[ORDINAL]], line[BUCKET])
  end
  for _, line in ipairs(lines) do
    line.limit = limit_of(lines, line, own, above, anew)
  end
  return lines
end

-- How many accounts they have.
local function accounts_of(lines)
  local count = 0
  for _, line in ipairs(lines) do
    count = math.max(count, line[ORDINAL])
  end
  return count
end

local function room(line)
  return (line[SHARE] and part(line.limit, line[SHARE]) or line.limit) + (line[MARGIN] or 0)
end

-- The rule of core.values.Ceiling. `over`: by how much it may be passed.
local function fits(line, amount, over)
  if not line.limit or amount == 0 or line[BASIS] == 2 then
    return true
  end
  if line[BASIS] == 1 then
    return line.account.c < room(line) + over
  end
  return line.account.r + line.account.c + amount <= room(line) + over
end

-- {limit or false, committed, reserved, unconfirmed} per account, one after the other.
local function balances(lines)
  local told, at = {}, 0
  for _, line in ipairs(lines) do
    if not line[TWIN] then
      local account = line.account
      told[at + 1], told[at + 2], told[at + 3], told[at + 4] = line.limit, account.c, account.r, account.u
      at = at + 4
    end
  end
  return told
end

-- Adds {place of the line, threshold, limit, committed} per threshold that committed has reached and that had not fired before.
local function fire(alerts, place, line)
  local account, limit = line.account, line.limit
  if not limit or account.c == 0 then
    return
  end
  for _, threshold in ipairs(line[ALERTS]) do
    if account.c < part(limit, threshold, true) then
      return
    elseif threshold > account.a then
      account.a = threshold
      alerts[#alerts + 1] = {place, threshold, limit, account.c}
    end
  end
end

-- Adds to the spend of a day. `group`: the field that the sums stand in: usd, tokens, calls, and behind those credits and risk points where
-- there were any.
local function add_spend(key, days, day, group, usd, tokens, calls, credits, risk)
  local unusual = credits ~= 0 or risk ~= 0
  if usd == 0 and tokens == 0 and calls == 0 and not unusual then
    return
  end
  local text, more = call('HGET', key, group), ''
  if text then
    local before_usd, before_tokens, before_calls = read('<ddd', text)
    usd, tokens, calls, more = before_usd + usd, before_tokens + tokens, before_calls + calls, string.sub(text, 25)
  else
    call('SADD', days, day)
  end
  if unusual then
    local before_credits, before_risk = 0, 0
    if more ~= '' then
      before_credits, before_risk = read('<dd', more)
    end
    more = numbers('<dd', before_credits + credits, before_risk + risk)
  end
  call('HSET', key, group, numbers('<ddd', usd, tokens, calls) .. more)
end
