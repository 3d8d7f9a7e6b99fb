-- Stands before every script. KEYS[1]: the tenant's meta. ARGV[1]: the epoch the gateway knows. ARGV[2]: the highest sequence it saw.
-- A store with another epoch, or behind that sequence, answers {LOST, epoch, sequence} and changes no book. One that is behind gets another
-- epoch: a gateway that saw less than this one would go on unawares, and soon write more steps than are missing.
-- Replies start with {code, sequence}. A script reads and decides first and writes last, so that it never stops half-way; every script
-- that changes anything moves the sequence by `advance`, which is its first write: out of memory or read-only shows there.
-- Amounts are doubles, exact up to 2^53. They go to commands as numbers, which the server writes with 17 digits, and into texts by
-- `int` only: Lua's own way has 14. What rarely runs is a function made when it is needed: closures are what a short script pays for.
-- What is kept (meta, accounts, runs, calls, spend) is one text each: first numbers, as doubles, then texts, as cmsgpack packs them. kept.py
-- is the same for Python.
local call = redis.call
local numbers, texts, read = struct.pack, cmsgpack.pack, struct.unpack

local LOST, DONE, UNKNOWN, AGAIN = 0, 1, 2, 3
local HELD, REFUSED, BARRED, STALE, ENDED = 4, 5, 6, 7, 8
local LIVE, EXPIRED, COMMITTED, RELEASED = 1, 2, 3, 4
local NONE = -1 -- of a number that there need not be

-- The tenant: sequence, how many raises there were, scopes are frozen, acts there were, the version of all that is kept; and the epoch.
local META, META_SIZE = '<ddddd', 40
local meta = call('GET', KEYS[1])
local epoch, sequence, raises, frozen, acts, version = '', 0, 0, 0, 0, 0
if meta then
  sequence, raises, frozen, acts, version = read(META, meta)
  epoch = string.sub(meta, META_SIZE + 1)
end
local function save_meta()
  call('SET', KEYS[1], numbers(META, sequence, raises, frozen, acts, version) .. epoch)
end
if epoch ~= ARGV[1] or sequence < tonumber(ARGV[2]) then
  local found = epoch
  if epoch == ARGV[1] then
    epoch = string.match(epoch, '^[^-]*') .. '-' .. table.concat(call('TIME'), '.')
    pcall(save_meta)
  end
  return {LOST, found, sequence}
end
local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local now = now_ms()

local function int(number)
  return string.format('%.0f', number)
end

local function advance()
  sequence = sequence + 1
  save_meta()
end

-- A run: when it was last used, what is reserved, committed, how many open holds it has, calls, when it was first used, raises at its pause
-- (NONE: an operator's), own limit, the last X-Run-Limit, unconfirmed, state, whether the admin set the limit, it is issued, it is placed;
-- owner, who paused it, ancestry, latest. One that there is not has no `o`.
local RUN, RUN_SIZE = '<dddddddddddddd', 112
local function run_at(key)
  local text = call('GET', key)
  if not text then
    return {key = key, s = 0, n = NONE, b = '', x = false, q = NONE, c = 0, r = 0, u = 0, k = 0, g = '', i = false, p = false, a = '', h = 0}
  end
  local t, r, c, h, k, f, n, l, q, u, s, x, i, p = read(RUN, text)
  local _, o, b, a, g = cmsgpack.unpack_limit(text, 4, RUN_SIZE)
  return {
    key = key, o = o, f = f, t = t, s = s, n = n, b = b, l = l ~= NONE and l or nil, x = x == 1, q = q, c = c, r = r, u = u, k = k, g = g,
    i = i == 1, p = p == 1, a = a, h = h,
  }
end

local function store_run(run)
  local x, i, p = run.x and 1 or 0, run.i and 1 or 0, run.p and 1 or 0
  local fixed = numbers(RUN, run.t, run.r, run.c, run.h, run.k, run.f, run.n, run.l or NONE, run.q, run.u, run.s, x, i, p)
  call('SET', run.key, fixed .. texts(run.o, run.b, run.a, run.g))
end

-- A call: state, end of its lease, what it was charged (usd, tokens, calls), when it ended (0: not yet), when it was reserved (0: a tombstone),
-- whether it warned, its plan's place from 0, marks, what it holds (usd, tokens, calls, and again in accounts that hold a slice: UNIT in
-- lines.lua); where MORE is marked, credits and risk points that it holds, and that it was charged; then lines, names, ancestry, group,
-- fingerprint, rest, closing: of a tombstone only that. One that there is not: nil.
local CALL, CALL_SIZE = '<dddddddddddddddd', 128
local MORE, LAPSES = 2, 4 -- of marks, which are added up; 1: it has a slice
local function call_at(key)
  local text = call('GET', key)
  if not text then
    return nil
  end
  local s, l, x1, x2, x3, z, t, w, p, marks, h1, h2, h3, h4, h5, h6 = read(CALL, text)
  local h7, h8, x4, x5, size = 0, 0, 0, 0, CALL_SIZE
  if marks % LAPSES >= MORE then
    h7, h8, x4, x5 = read('<dddd', text, CALL_SIZE + 1)
    size = CALL_SIZE + 32
  end
  local kept = {
    key = key, s = s, l = l, x = {x1, x2, x3, x4, x5}, z = z, t = t ~= 0 and t or nil, w = w, p = p, sliced = marks % MORE,
    lapses = marks >= LAPSES, h = {h1, h2, h3, h4, h5, h6, h7, h8},
  }
  if kept.t then
    local _
    _, kept.n, kept.m, kept.a, kept.g, kept.f, kept.d, kept.e = cmsgpack.unpack_limit(text, 7, size)
  end
  return kept
end

local function store_call(kept)
  local x, h, marks, more = kept.x, kept.h, kept.sliced + (kept.lapses and LAPSES or 0), ''
  if h[7] ~= 0 or h[8] ~= 0 or x[4] ~= 0 or x[5] ~= 0 then
    marks, more = marks + MORE, numbers('<dddd', h[7], h[8], x[4], x[5])
  end
  local text = numbers(
    CALL, kept.s, kept.l, x[1], x[2], x[3], kept.z, kept.t or 0, kept.w, kept.p, marks, h[1], h[2], h[3], h[4], h[5], h[6]
  ) .. more
  if kept.t then
    text = text .. texts(kept.n, kept.m, kept.a, kept.g, kept.f, kept.d)
  end
  call('SET', kept.key, text .. (kept.e and texts(kept.e) or ''))
end

-- Keeps what somebody did by hand. `text`: JSON of who, what was done, to what and why.
local function act(kept, order, id, text)
  acts = acts + 1
  save_meta()
  call('HSET', kept, id, int(now) .. ' ' .. text)
  call('ZADD', order, acts, id)
end
