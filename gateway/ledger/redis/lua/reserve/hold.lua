-- Reserve, where a plan fits: its accounts and its record; of a debit also the charge.

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
