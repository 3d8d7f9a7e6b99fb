-- Removes an ended call and carries what it charged forward in its accounts.
--
-- KEYS   1 meta  2 the call  3 ended  4 expired  5 those that lapse; then its run; then its accounts
-- ARGV   1 epoch  2 sequence  3 tail  4 how long ended calls are kept, in ms
-- Reply  {DONE, sequence, removed}  {AGAIN, sequence}: it has accounts that did not come in KEYS
local tail = ARGV[3]
local kept = call_at(KEYS[2])
if not kept or not kept.t or kept.s == LIVE or kept.z > now - tonumber(ARGV[4]) then
  return {DONE, sequence, 0}
end
-- An expired hold charged each account what was held there, and none where it lapses.
local expired, lines, x = kept.s == EXPIRED, cjson.decode(kept.n), kept.x
local charged = {x[1], x[2], x[3], x[1], x[2], x[3], x[4], x[5]}
if expired and not kept.lapses then
  charged = kept.h
end
if #KEYS < 6 + accounts_of(lines) then
  return {AGAIN, sequence}
end
for _, line in ipairs(lines) do
  local account = account_at(KEYS[6 + line[ORDINAL]], line[BUCKET])
  if account.e and not line[TWIN] then -- else it went with its window or its run
    local amount = charged[line[UNIT]]
    local index = line[BUCKET] and math.floor(kept.z / line[BUCKET])
    if not index then
      account.f = account.f + amount
      move(account, 0, 0, expired and -amount or 0)
    elseif index >= account.o then
      local bucket = bucket_of(account, index)
      bucket[3] = bucket[3] + amount
      move(account, 0, 0, expired and -amount or 0, index)
    end
  end
end
advance()
for _, account in pairs(accounts) do
  if account.e then
    store(account)
  end
end
if expired then
  local run = run_at(KEYS[6])
  if run.o then
    run.u, run.h = run.u - charged[1], run.h - 1
    store_run(run)
  end
  call('ZREM', KEYS[4], tail)
end
call('DEL', KEYS[2])
call('ZREM', KEYS[3], tail)
if kept.lapses then
  call('ZREM', KEYS[5], tail)
end
return {DONE, sequence, 1}
