-- Removes an ended call and carries what it charged forward in its accounts.
--
-- KEYS   1 meta  2 the call  3 ended  4 open; then its run; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 how long ended calls are kept, in ms
-- Reply  {DONE, sequence, removed}  {AGAIN, sequence}: it has accounts that did not come in KEYS
local tail = ARGV[3]
local found = call('HMGET', KEYS[2], 's', 'x', 'n', 'z', 'h')
local state = tonumber(found[1])
if not state or state == LIVE or not found[3] or tonumber(found[4]) > now - tonumber(ARGV[4]) then
  return {DONE, sequence, 0}
end
-- An expired hold charged each account what was held there.
local lines, charged, ended = cjson.decode(found[3]), six(state == EXPIRED and found[5] or found[2]), tonumber(found[4])
if #KEYS < 5 + accounts_of(lines) then
  return {AGAIN, sequence}
end
local carried = {}
for _, line in ipairs(lines) do
  local account = account_at(KEYS[5 + line[ORDINAL]], line[BUCKET])
  if account.e and not line[TWIN] then -- else it went with its window or its run
    local amount = charged[line[UNIT]]
    local index = line[BUCKET] and math.floor(ended / line[BUCKET])
    if not index then
      carried[account] = (tonumber(call('HGET', account.key, 'f')) or 0) + amount
      move(account, 0, 0, state == EXPIRED and -amount or 0)
    elseif index >= account.o then
      local bucket = bucket_of(account, index)
      bucket[3] = bucket[3] + amount
      move(account, 0, 0, state == EXPIRED and -amount or 0, index)
    end
  end
end
advance()
for _, account in pairs(accounts) do
  if account.e then
    store(account)
    if carried[account] then
      call('HSET', account.key, 'f', carried[account])
    end
  end
end
if state == EXPIRED then
  local run = call('HMGET', KEYS[5], 'u', 'h')
  if run[1] then
    call('HSET', KEYS[5], 'u', run[1] - charged[1], 'h', run[2] - 1)
  end
  call('ZREM', KEYS[4], tail)
end
call('DEL', KEYS[2])
call('ZREM', KEYS[3], tail)
return {DONE, sequence, 1}
