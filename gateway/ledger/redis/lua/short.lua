-- Stands before hold.lua and commit.lua, which do what nearly every call asks for: what they look at is read by one command, and changed by
-- one. Whatever is not as usual they leave as it is, without a word on why, and answer LONG: the gateway then asks reserve.lua or settle.lua,
-- which decide for themselves. So these may know less than those, but must never do other than they would.
--
-- KEYS   1 meta  2 the call; then its run and its ancestors; then its accounts; then what is no text
-- ARGV   1 epoch  2 numbers, as doubles: sequence, how many of KEYS are texts, then the script's own
-- Reply  LONG, or what the script says, as 64-bit integers
local call = redis.call
local numbers, read = struct.pack, struct.unpack
local LONG = 0
local LIVE, COMMITTED, ACTIVE, NONE, ALL = 1, 3, 0, -1, 1000000
local MOST = 9007199254740992
local MORE, LAPSES = 2, 4 -- as in common.lua
-- How meta, a run, an account and a call begin, and how long the numbers before their texts are: see common.lua and lines.lua.
local META_SIZE, RUN, RUN_SIZE, ACCOUNT, CALL, CALL_SIZE = 40, '<dddddddddddddd', 112, '<ddddd', '<dddddddddddddddd', 128

local seen, count = read('<dd', ARGV[2])
local found = call('MGET', unpack(KEYS, 1, count))
if not found[1] or string.sub(found[1], META_SIZE + 1) ~= ARGV[1] then
  return LONG
end
local sequence, _, frozen = read('<ddd', found[1])
if sequence < seen then
  return LONG
end
local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local now = now_ms()
local changes = {KEYS[1], numbers('<d', sequence + 1) .. string.sub(found[1], 9), KEYS[2]}

-- As in lines.lua.
local function part(amount, ppm, up)
  local low = amount % 1000000
  return (amount - low) / 1000000 * ppm + (up and math.ceil or math.floor)(low * ppm / 1000000)
end
