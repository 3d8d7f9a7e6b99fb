-- Reserve, where a plan fits: its accounts and its record; of a debit also the charge.

local plan = plans[held]
local lines = met[plan[1]]
local warned = debit and #warnings(lines, amounts, true) > 0

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
    if not account.e then
      all_names = all_names or cjson.decode(ARGV[BEFORE_TEXTS + 2 * plan[1]])
      list(account, all_names[at_line], 12, cjson.decode(ARGV[10])[SHARED_END])
    end
    account.l = account.l or line.pins
    store(account)
  end
end
claim()
run.k, run.g = run.k + 1, tail
if debit then
  run.c = run.c + debit[CHARGED][1]
else
  run.r, run.h = run.r + amounts[1], run.h + 1
end
store_run(run)

local over = nil
if not debit then
  over = warnings(lines, amounts)
  warned = #over > 0
end
if caller[SAME] > 0 then
  call('LPUSH', KEYS[7], tail .. ' ' .. fingerprint)
  call('LTRIM', KEYS[7], 0, caller[WITHIN] - 1)
end
local lease, group = now + tonumber(ARGV[4]), ARGV[14] .. plan[5]
local kept = {
  key = KEYS[2], s = LIVE, l = lease, x = {0, 0, 0, 0, 0}, z = 0, t = now, w = warned and 1 or 0, p = held - 1,
  sliced = plan[6] and 1 or 0, lapses = caller[LAPSING], h = amounts, f = fingerprint, a = ancestry, n = ARGV[BEFORE_TEXTS + 2 * plan[1] - 1], m = ARGV[BEFORE_TEXTS + 2 * plan[1]], g = group, d = ARGV[11],
}
if debit then
  local charged = debit[CHARGED]
  local credits, risk = charged[7], charged[8]
  kept.s, kept.l, kept.z, kept.e = COMMITTED, 0, now, debit[CLOSING]
  kept.x = {charged[1], charged[2], charged[3], credits, risk}
  store_call(kept)
  call('ZADD', KEYS[15], now, tail)
  add_spend(KEYS[17], KEYS[16], debit[DAY], group, charged[1], charged[2], charged[3], credits, risk)
  return {DONE, sequence, COMMITTED, 1, charged[1], charged[2], charged[3], balances(lines), alerts, credits, risk}
end
store_call(kept)
call('ZADD', KEYS[3], lease, tail)
if kept.lapses then
  call('ZADD', KEYS[17], now, tail)
end
return {HELD, sequence, now, lease, held, balances(lines), over}
