-- Stands before every script. KEYS[1]: the tenant's meta hash. ARGV[1]: the epoch the gateway knows. ARGV[2]: the highest sequence it saw.
-- A store with another epoch, or behind that sequence, answers {LOST, epoch, sequence} and changes no book. One that is behind gets another
-- epoch: a gateway that saw less than this one would go on unawares, and soon write more steps than are missing.
-- Replies start with {code, sequence}. A script reads and decides first and writes last, so that it never stops half-way; every script
-- that changes anything moves the sequence by `advance`, which is its first write: out of memory or read-only shows there.
-- Amounts are doubles, exact up to 2^53. They go to commands as numbers, which the server writes with 17 digits, and into texts by
-- `int` only: Lua's own way has 14. What rarely runs is a function made when it is needed: closures are what a short script pays for.
local call = redis.call

local LOST, DONE, UNKNOWN, AGAIN = 0, 1, 2, 3
local HELD, REFUSED, BARRED, STALE, ENDED = 4, 5, 6, 7, 8
local LIVE, EXPIRED, COMMITTED, RELEASED = 1, 2, 3, 4

local meta = call('HMGET', KEYS[1], 'epoch', 'sequence', 'raises', 'frozen')
if meta[1] ~= ARGV[1] or tonumber(meta[2]) < tonumber(ARGV[2]) then
  if meta[1] == ARGV[1] then
    redis.pcall('HSET', KEYS[1], 'epoch', string.match(meta[1], '^[^-]*') .. '-' .. table.concat(call('TIME'), '.'))
  end
  return {LOST, meta[1] or '', tonumber(meta[2]) or 0}
end
local sequence = tonumber(meta[2])
local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local now = now_ms()

local function int(number)
  return string.format('%.0f', number)
end

local function advance()
  sequence = call('HINCRBY', KEYS[1], 'sequence', 1)
end

-- "1 2 3" → 1, 2, 3
local function three(text)
  local one, two, other = string.match(text, '(%S+) (%S+) (%S+)')
  return tonumber(one), tonumber(two), tonumber(other)
end

-- What a call holds, in the order of UNIT (lines.lua), from "usd tokens calls" and, if it has a slice, the same three of that. Then whether
-- it has one.
local function six(text)
  local one, two, other, slice = string.match(text, '(%S+) (%S+) (%S+) ?(.*)')
  one, two, other = tonumber(one), tonumber(two), tonumber(other)
  if slice == '' then
    return {one, two, other, one, two, other}, false
  end
  return {one, two, other, three(slice)}, true
end

local function of_three(one, two, other)
  return string.format('%.0f %.0f %.0f', one, two, other)
end

-- Keeps what somebody did by hand. `text`: JSON of who, what was done, to what and why.
local function act(acts, order, id, text)
  call('HSET', acts, id, int(now) .. ' ' .. text)
  call('ZADD', order, call('HINCRBY', KEYS[1], 'acts', 1), id)
end
