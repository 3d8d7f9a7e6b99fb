-- Reserve, the ladder: the first plan that fits all its accounts, under the limits that would stand then.

local asks = caller[RUN_LIMIT] >= 0 and mine and run.q ~= caller[RUN_LIMIT]
if asks then
  run.l = run.l and math.min(run.l, caller[RUN_LIMIT]) or caller[RUN_LIMIT]
end
local met, blocking, held, amounts = {}, {}, nil, nil
for number, plan in ipairs(plans) do
  local lines = met[plan[1]]
  if not lines then
    lines = lines_of(plan[1], true)
    met[plan[1]] = lines
  end
  local usd, tokens, calls = plan[2], plan[3], plan[4]
  amounts = {usd, tokens, calls, plan[6] or usd, plan[7] or tokens, plan[8] or calls, plan[9] or 0, plan[10] or 0}
  held = number
  if how < ALWAYS then
    for at_line, line in ipairs(lines) do
      if not fits(line, amounts[line[UNIT]], 0) then
        blocking[number] = at_line
        held = nil
        break
      end
    end
  end
  if held then
    break
  end
end

